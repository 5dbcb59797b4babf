// A Supabase Edge Function that recommends items to a user, with the tower and the items of one release.
// Copy it as supabase/functions/recommend/index.ts, with deno.json, features.mjs and release.mjs beside it. Then:
//   supabase functions deploy recommend
//   supabase secrets set MODEL_TRUSTED_KEY="$(cat public.pem)"
import { PostgrestClient } from "@supabase/postgrest-js";
import { userFeatures } from "./features.mjs";
import { fetchFile, ReleaseError, resolve } from "./release.mjs";

const MODEL = "two_tower";
// Supabase's runtime has ONNX Runtime built in; the function needs no package and downloads no WebAssembly.
const { InferenceSession, Tensor } = globalThis[Symbol.for("onnxruntime")];
const url = Deno.env.get("SUPABASE_URL");
const secretKey = apiKey("SECRET", "SUPABASE_SERVICE_ROLE_KEY");
const database = new PostgrestClient(`${url}/rest/v1`, {
  schema: "supabase_bridge",
  headers: { apikey: secretKey, Authorization: `Bearer ${secretKey}` },
  timeout: 5_000,
});

/** The reason why there is no answer: an HTTP status, a code for programs, and a sentence for people. */
class Refusal extends Error {
  constructor(status, code, message) {
    super(message);
    Object.assign(this, { status, code });
  }
}

/** An API key of the project. Supabase gives a function all of them as JSON, by name. */
function apiKey(kind, legacy) {
  const keys = JSON.parse(Deno.env.get(`SUPABASE_${kind}_KEYS`) || "{}");
  return keys.default ?? Deno.env.get(`SUPABASE_${kind}_KEY`) ?? Deno.env.get(legacy);
}

let opened; // the release whose tower is in memory, with the tower and the vocabulary of the same release
let refreshing;

/** Return the current release, opened. Requests that come meanwhile share one refresh. */
function current() {
  refreshing ??= refresh().finally(() => (refreshing = undefined));
  return refreshing;
}

async function refresh() {
  try {
    const release = await resolve({
      url,
      key: apiKey("PUBLISHABLE", "SUPABASE_ANON_KEY"),
      model: MODEL,
      trustedKeys: [Deno.env.get("MODEL_TRUSTED_KEY") ?? ""],
      maxAgeSeconds: Number(Deno.env.get("MODEL_MAX_AGE_SECONDS") ?? 30 * 86_400),
      previous: opened?.release,
    });
    const same = release.runId === opened?.release.runId;
    opened = same ? { ...opened, release } : await open(release);
  } catch (error) {
    // During an outage, or after a refused manifest, continue with the last release.
    if (opened === undefined) throw error;
    console.error(`${error.code}: ${error.message}`);
  }
  return opened;
}

async function open(release) {
  if (release.userOnnxPath === undefined) {
    throw new Refusal(503, "no-tower", `${MODEL}/${release.runId} has no user tower; log the model with towers=["user"]`);
  }
  const names = [release.userOnnxPath.split("/").at(-1), "features/tag_vocab.json", "features/schema.json"];
  const [onnx, ...documents] = await Promise.all(names.map((name) => fetchFile(release, name)));
  const [tags, schema] = documents.map((bytes) => JSON.parse(new TextDecoder().decode(bytes)));
  return { release, session: await InferenceSession.create(onnx), tags, schema };
}

async function embed({ session, ...features }, history) {
  const row = userFeatures(history, features);
  const { [session.outputNames[0]]: embedding } = await session.run({
    [session.inputNames[0]]: new Tensor("float32", row, [1, row.length]),
  });
  return Array.from(embedding.data);
}

async function recommend({ history, k }) {
  const seen = new Set(history.map(({ item }) => item));
  let lastAsked;
  while (true) {
    const tower = await current();
    const { runId, publishedAt } = tower.release;
    if (runId === lastAsked) {
      const command = `supabase-bridge embeddings load ${MODEL}/${runId}`;
      throw new Refusal(503, "not-ready", `the items of ${MODEL}/${runId} are not loaded; run \`${command}\``);
    }
    lastAsked = runId;
    // The run_id is that of the manifest that named the tower. A switch from here on changes nothing for this request.
    const query = await embed(tower, history);
    const { data, error, status } = await database.rpc("match_items", { model: MODEL, run_id: runId, query, k: k + seen.size });
    if (!error) {
      return { run_id: runId, published_at: publishedAt, items: data.filter(({ id }) => !seen.has(id)).slice(0, k) };
    }
    // The set of this release is not there (any more): if the manifest names another release by now, ask again with that.
    if (error.code !== "PT404") throw refused(error, status);
  }
}

/** Say in a Refusal why PostgREST did not run the function. */
function refused({ code, message }, status) {
  if (code === "42501") return new Refusal(500, "not-granted", `${message}: grant it to the role of the key, see docs/embeddings.md`);
  if (code === "PGRST106" || code === "PGRST202") {
    return new Refusal(500, "not-exposed", `${message}: expose the schema supabase_bridge, and run \`supabase-bridge embeddings init\``);
  }
  return new Refusal(503, "database", `match_items failed (HTTP ${status}): ${message}`);
}

/** Return the request's history and number of items; `{"history": [{"item", "rating", "tags"}], "k": 10}`. */
async function read(request) {
  const body = await request.json().catch(() => undefined);
  const { history, k = 10 } = body ?? {};
  const isRated = ({ item, rating, tags }) =>
    typeof item === "string" && rating >= 0 && rating <= 5 && Array.isArray(tags) && tags.every((tag) => typeof tag === "string");
  const holds = Array.isArray(history) && history.length <= 900 && history.every((one) => one && isRated(one));
  if (!holds || !Number.isInteger(k) || k < 1 || k > 100) {
    throw new Refusal(400, "request", 'expected {"history": [{"item": "50", "rating": 4, "tags": ["genre:Drama"]}], "k": 10}, k from 1 to 100');
  }
  return { history, k };
}

Deno.serve(async (request) => {
  try {
    return Response.json(await recommend(await read(request)));
  } catch (error) {
    const known = error instanceof Refusal || error instanceof ReleaseError;
    console.error(known ? `${error.code}: ${error.message}` : error);
    const { status = 503, code, message } = known ? error : { status: 500, code: "internal", message: "see the function's log" };
    return Response.json({ error: code, message }, { status });
  }
});
