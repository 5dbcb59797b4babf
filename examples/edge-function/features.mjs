// The features of a user, as examples/two_tower/features.py makes them for the training. A model of your own has others.

/**
 * Return the row of one user.
 *
 * @param {{tags: string[], rating: number}[]} history the items that the user rated, each with its tags
 * @param {{tags: Record<string, number>, schema: {user_width: number, tags_of_a_user: number}}} features the files
 *   `features/tag_vocab.json` and `features/schema.json` of the release
 * @returns {Float32Array}
 */
export function userFeatures(history, { tags, schema }) {
  const preferred = new Map();
  for (const { tags: names, rating } of history) {
    const columns = new Set(names.filter((name) => Object.hasOwn(tags, name)).map((name) => tags[name]));
    for (const column of columns) {
      preferred.set(column, (preferred.get(column) ?? 0) + (rating - 2.5) / Math.sqrt(columns.size));
    }
  }
  const best = [...preferred].sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]) || a[0] - b[0]).slice(0, schema.tags_of_a_user);
  const length = Math.hypot(...best.map(([, weight]) => weight)) || 1;
  const row = new Float32Array(schema.user_width);
  for (const [column, weight] of best) row[column] = weight / length;
  const sum = history.reduce((total, { rating }) => total + rating, 0);
  const statistics = [Math.log1p(history.length) / 7, sum / (history.length || 1) / 5, history.length === 0 ? 1 : 0];
  row.set(statistics, schema.user_width - statistics.length);
  return row;
}
