// A Supabase Edge Function that returns the current release, after it has verified the signature:
//   supabase functions deploy current-model
//   supabase secrets set MODEL_TRUSTED_KEY="$(cat public.pem)"
import { fetchFile, resolve } from "./release.mjs";

let release;
let meta = {};

/** The publishable key. Supabase gives a function all of them as JSON, by name. */
function publishableKey() {
  const keys = JSON.parse(Deno.env.get("SUPABASE_PUBLISHABLE_KEYS") || "{}");
  return keys.default ?? Deno.env.get("SUPABASE_PUBLISHABLE_KEY") ?? Deno.env.get("SUPABASE_ANON_KEY");
}

Deno.serve(async () => {
  try {
    // An isolate serves many requests. With `previous` the next resolve is one 304, and an older manifest is refused.
    const found = await resolve({
      url: Deno.env.get("SUPABASE_URL"),
      key: publishableKey(),
      model: "two_tower",
      trustedKeys: [Deno.env.get("MODEL_TRUSTED_KEY") ?? ""],
      // Activate a release, or run `supabase-bridge keys sign-manifest`, at least that often; otherwise it is refused.
      maxAgeSeconds: Number(Deno.env.get("MODEL_MAX_AGE_SECONDS") ?? 30 * 86_400),
      previous: release,
    });
    if (found.runId !== release?.runId) meta = JSON.parse(new TextDecoder().decode(await fetchFile(found, "model_meta.json")));
    release = found;
  } catch (error) {
    // During an outage, or after a refused manifest, continue with the last release.
    console.error(`${error.code}: ${error.message}`);
  }
  if (release === undefined) return Response.json({ error: "no release yet" }, { status: 503 });
  return Response.json({ run_id: release.runId, signed: release.signed, embedding_dim: meta.embedding_dim });
});
