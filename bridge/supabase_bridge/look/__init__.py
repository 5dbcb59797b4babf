"""A look at two releases side by side before a switch: metrics, lists, overlap and scores. It only reads.

Entry points: `opened.open_sides` reads two releases, `lists.load_lists` their lists; `page` shows both with Streamlit.
Needs the extra `look`. `comparison` is pure.
It imports core, settings, client and embeddings.
"""
