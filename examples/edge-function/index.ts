// A Supabase Edge Function that says which release is current, after checking its signature:
//   supabase functions deploy current-model
//   supabase secrets set MODEL_TRUSTED_KEY="$(cat public.pem)"
import { fetchFile, resolve } from "./release.mjs";

let release;
let meta = {};

Deno.serve(async () => {
  try {
    // An isolate lives for many requests: what it knows makes the next look one 304, and an older manifest refused.
    const found = await resolve({
      url: Deno.env.get("SUPABASE_URL"),
      key: Deno.env.get("SUPABASE_ANON_KEY"),
      model: "two_tower",
      trustedKeys: [Deno.env.get("MODEL_TRUSTED_KEY") ?? ""],
      // Confirm the manifest by a switch or `supabase-bridge keys sign-manifest` at least that often, or this refuses it.
      maxAgeSeconds: Number(Deno.env.get("MODEL_MAX_AGE_SECONDS") ?? 30 * 86_400),
      previous: release,
    });
    if (found.runId !== release?.runId) meta = JSON.parse(new TextDecoder().decode(await fetchFile(found, "model_meta.json")));
    release = found;
  } catch (error) {
    // An outage, or a manifest that is not believed: go on with the release that was.
    console.error(`${error.code}: ${error.message}`);
  }
  if (release === undefined) return Response.json({ error: "no release yet" }, { status: 503 });
  return Response.json({ run_id: release.runId, signed: release.signed, embedding_dim: meta.embedding_dim });
});
