// Resolve, verify and fetch a model's release from Supabase Storage. Web Crypto and fetch only: runs in a Supabase Edge
// Function (Deno) and in Node 18 or later. It checks the same as the Python client; docs/format.md of
// mlflow-supabase-bridge describes the documents. Apache-2.0.

// Node 18 has no global `crypto`.
const crypto = globalThis.crypto ?? (await import("node:crypto")).webcrypto;
const DOCUMENT_LIMIT_BYTES = 1_000_000;
const NESTING_LIMIT = 64;
const CLOCK_SKEW_MS = 5 * 60_000;
const MODEL = /^[A-Za-z0-9][A-Za-z0-9_!.*'()&$=;,+ -]{0,119}$/;
const CHANNEL = /^[a-z][a-z0-9_-]{0,62}$/;
const RUN_ID = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z(?:-[A-Za-z0-9._-]{1,64})?$/;
const KEY = /^[A-Za-z0-9_/!.*'()&$@=;:+,? -]+$/;
const SIGNATURE = /^([A-Za-z0-9_-]{1,400})\.\.([A-Za-z0-9_-]{1,200})$/;
const SHA256 = /^[0-9a-f]{64}$/;
const TIME = /^(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(\.\d+)?(?:[Zz]|([+-])([01]\d|2[0-3]):([0-5]\d))$/;
const FIRST_YEAR = Date.parse("0001-01-01T00:00:00Z");
const AFTER_LAST_YEAR = Date.parse("+010000-01-01T00:00:00Z");
const LONGEST_TIMER_MS = 2 ** 31 - 1;

const isText = (value) => typeof value === "string";
const isPlain = (key) =>
  isText(key) && KEY.test(key) && key.split("/").every((part) => !["", ".", ".."].includes(part) && part.length <= 255);

// The fields of a manifest, each with its allowed values.
const isWhole = Number.isSafeInteger;
const isTime = (value) => isText(value) && !Number.isNaN(instant(value));
const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const optional = (is) => (value) => value === undefined || value === null || is(value);
const object = (fields) => (value) => isObject(value) && Object.entries(fields).every(([name, is]) => is(value[name]));
const isDigest = (value) => isText(value) && SHA256.test(value);
const isRecord = object({
  size_bytes: (value) => isWhole(value) && value >= 0,
  sha256: isDigest,
});
const POINTER = {
  run_id: isText,
  published_at: optional(isTime),
  onnx_path: isText,
  meta_path: optional(isText),
  metrics_path: optional(isText),
  model_version: optional(isWhole),
  user_onnx_path: optional(isText),
  item_onnx_path: optional(isText),
};
const CURRENT = {
  ...POINTER,
  published_at: isTime,
  meta_path: isText,
  metrics_path: isText,
  files: (value) => value === undefined || (isObject(value) && Object.values(value).every(isRecord)),
};
const CAUSE = {
  registry_id: optional(isText),
  event_id: optional(isWhole),
  by: optional(isText),
  during_freeze: optional(isText),
  by_hand: optional((value) => typeof value === "boolean"),
};
const MANIFEST = {
  model_name: isText,
  current: object(CURRENT),
  previous: (value) => value === undefined || (Array.isArray(value) && value.every(object(POINTER))),
  release_notes: optional(isText),
  channel: isText,
  sequence: (value) => isWhole(value) && value >= 1 && value <= 99_999_999,
  previous_entry_sha256: optional(isDigest),
  cause: optional(object(CAUSE)),
  confirmed_at: optional(isTime),
  confirmed_by: optional(isText),
  signature: optional(isText),
};

/** The reason why there is no release. `code` is one of: absent, denied, unavailable, late, too-large, redirected,
 * malformed, unsigned, signature, unknown-key, wrong, path, replayed, forked, expired, future, corrupt, settings. */
export class ReleaseError extends Error {
  constructor(code, message, options) {
    super(message, options);
    this.name = "ReleaseError";
    this.code = code;
  }
}

/**
 * Return the release that a channel names now.
 *
 * @param {object} options
 * @param {string} options.model the model's folder in the bucket
 * @param {string} [options.channel] "latest" by default
 * @param {string} [options.url] the project's URL; with `signedUrl` it only separates projects
 * @param {(key: string) => string | Promise<string>} [options.signedUrl] signs a URL for an object's key; its
 *   errors are passed on
 * @param {string} [options.key] a publishable or secret key; without one the bucket must be public
 * @param {string} [options.bucket] "models" by default
 * @param {string[]} [options.trustedKeys] public keys in PEM; if there are any, an unsigned manifest is refused
 * @param {boolean} [options.requireSignature] overrides this default
 * @param {number} [options.maxAgeSeconds] maximum time since the manifest was published or reissued
 * @param {object} [options.previous] the result of an earlier call for the same project, bucket, model and channel: an
 *   unchanged manifest is not sent again, an older one is refused
 * @param {number} [options.minSequence] the highest sequence that was seen, if you stored only that
 * @param {number} [options.timeoutMs] total timeout, 10 s by default
 * @param {typeof fetch} [options.fetch]
 * @param {() => number} [options.now] the time in milliseconds since 1970
 * @returns {Promise<object>} frozen: model, channel, runId, sequence, publishedAt, signed, keyId, files, onnxPath, metaPath,
 *   metricsPath, userOnnxPath and itemOnnxPath (undefined without such files), manifest
 */
export async function resolve(options) {
  const { model, channel = "latest", previous, minSequence = 0, maxAgeSeconds = Infinity, now = () => Date.now() } = options;
  const source = reading(options);
  const keys = await trusted(options.trustedKeys ?? []);
  const required = options.requireSignature ?? keys.size > 0;
  settle(isText(model) && MODEL.test(model) && !/[ .]$/.test(model), "model: no folder has that name");
  settle(isText(channel) && CHANNEL.test(channel), "channel: no channel has that name");
  settle(!required || keys.size > 0, "a signature is required, and no key is trusted");
  settle(isWhole(minSequence) && minSequence >= 0, "minSequence: expected a whole number");
  settle(typeof maxAgeSeconds === "number" && maxAgeSeconds >= 0, "maxAgeSeconds: expected a number of seconds");
  const same = previous?.model === model && previous.channel === channel && previous.source?.place === source.place;
  const known = same ? previous : undefined;

  const key = `${model}/${channel}/manifest.json`;
  const headers = known?.etag ? { "if-none-match": known.etag } : {};
  const answer = await read(source, key, { limit: DOCUMENT_LIMIT_BYTES, headers, fresh: true, conditional: Boolean(known) });
  const bytes = answer.bytes ?? known.bytes;
  const etag = answer.bytes ? answer.etag : known.etag;

  const manifest = parse(bytes);
  const { signature, ...content } = manifest;
  const canonicalText = canonical(content);
  const keyId = await signer(signature, canonicalText, keys, required);
  check(manifest, { model, channel, signed: keyId !== undefined });
  const digest = await sha256(new TextEncoder().encode(canonicalText));
  checkOrder(manifest, digest, known, minSequence);
  if (maxAgeSeconds !== Infinity) checkAge(manifest, maxAgeSeconds, now());
  const { current } = manifest;
  return freeze({
    model, channel, etag, bytes, digest, source, manifest, keyId,
    runId: current.run_id,
    sequence: manifest.sequence,
    publishedAt: current.published_at,
    signed: keyId !== undefined,
    files: current.files ?? {},
    onnxPath: current.onnx_path,
    metaPath: current.meta_path,
    metricsPath: current.metrics_path,
    userOnnxPath: current.user_onnx_path ?? undefined,
    itemOnnxPath: current.item_onnx_path ?? undefined,
  });
}

/**
 * Return one file of a release, compared with the size and SHA-256 that its manifest records.
 *
 * @param {object} release the result of `resolve`
 * @param {string} name the file's name; by default the ONNX file
 * @param {{timeoutMs?: number}} [options] total timeout, 60 s by default
 * @returns {Promise<Uint8Array>}
 */
export async function fetchFile(release, name = release.onnxPath.split("/").at(-1), { timeoutMs = 60_000 } = {}) {
  settle(isDuration(timeoutMs), "timeoutMs: expected milliseconds");
  // `resolve` checked all this; the caller may have changed the release since.
  if (!isPlain(name)) throw new ReleaseError("path", "the file's name leads elsewhere");
  if (!Object.hasOwn(release.files, name)) throw new ReleaseError("absent", `the manifest has no record of ${brief(name)}`);
  const record = release.files[name];
  if (!isRecord(record)) throw new ReleaseError("malformed", `the record of ${brief(name)} is none`);
  const key = `${release.model}/${release.runId}/${name}`;
  const { bytes } = await read({ ...release.source, timeoutMs }, key, { limit: record.size_bytes, corrupt: true });
  if (bytes.length !== record.size_bytes || (await sha256(bytes)) !== record.sha256) {
    throw new ReleaseError("corrupt", `${key} is not as recorded`);
  }
  return bytes;
}

/** Return the canonical text of a JSON value (RFC 8785). JSON.stringify writes numbers and texts as required; keys are
 * sorted by UTF-16 units. */
export function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const members = Object.keys(value).sort().map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`);
  return `{${members.join(",")}}`;
}

function settle(holds, problem) {
  if (!holds) throw new ReleaseError("settings", problem);
}

const isDuration = (value) => typeof value === "number" && value > 0 && value <= LONGEST_TIMER_MS;
const brief = (text) => text.slice(0, 200);

function isHttp(url) {
  try {
    return /^https?:\/\//i.test(url) && new URL(url).hostname !== "";
  } catch {
    return false;
  }
}

/** Return the bucket to read from; `place` is equal for equal buckets. */
function reading({ url, bucket = "models", key, signedUrl, timeoutMs = 10_000, fetch: fetching = globalThis.fetch }) {
  settle(Boolean(url || signedUrl) && !(key && signedUrl), "give url, with or without key, or signedUrl");
  settle(!url || (isHttp(url) && !/[@?#]/.test(url)), "url: expected https://<project>.supabase.co");
  settle(!key || (isText(key) && /^[!-~]+$/.test(key)), "key: it has characters that no key has");
  settle(isPlain(bucket) && !bucket.includes("/"), "bucket: no bucket has that name");
  settle(isDuration(timeoutMs), "timeoutMs: expected milliseconds");
  const place = `${signedUrl ? "signed URLs of " : ""}${url ? new URL(url).origin : "a project"} bucket ${bucket}`;
  return { url: url?.replace(/\/+$/, ""), bucket, key, signedUrl, timeoutMs, fetching, place };
}

/** Return an object's bytes, at most `limit`, within the timeout; no bytes if it is unchanged. */
async function read(source, key, options) {
  if (!isPlain(key)) throw new ReleaseError("path", "a key leads elsewhere");
  const stop = new AbortController();
  let timer;
  const late = new Promise((_, reject) => {
    const error = new ReleaseError("late", `${key} did not come in ${source.timeoutMs} ms`);
    timer = setTimeout(() => reject(error), source.timeoutMs);
  });
  try {
    return await Promise.race([request(source, key, options, stop.signal), late]);
  } finally {
    clearTimeout(timer);
    stop.abort(); // Do not wait for the unread rest of a response.
  }
}

async function request(source, key, { limit, headers = {}, fresh = false, conditional = false, corrupt = false }, signal) {
  const address = source.signedUrl ? await signedAddress(source, key) : ownAddress(source, key, fresh);
  const sent = source.key ? { apikey: source.key, authorization: `Bearer ${source.key}` } : {};
  try {
    const response = await source.fetching(address, {
      headers: { "accept-encoding": "identity", ...sent, ...headers },
      redirect: "manual", // The key is sent to the project only.
      signal,
    });
    if (conditional && response.status === 304) return {};
    if (response.type === "opaqueredirect" || (response.status >= 300 && response.status < 400)) {
      throw new ReleaseError("redirected", `${key} was redirected, which is not followed`);
    }
    if (!response.ok) throw await refusal(response, key);
    return { bytes: await body(response, key, limit, corrupt), etag: response.headers.get("etag") ?? undefined };
  } catch (error) {
    if (error instanceof ReleaseError) throw error;
    throw new ReleaseError("unavailable", `${key} could not be read`, { cause: error });
  }
}

function ownAddress(source, key, fresh) {
  const route = source.key ? "object" : "object/public";
  const path = [source.bucket, ...key.split("/")].map(encodeURIComponent).join("/");
  // A new nonce bypasses every cache; a hosted CDN may be a minute behind.
  return `${source.url}/storage/v1/${route}/${path}` + (fresh ? `?cacheNonce=${crypto.randomUUID()}` : "");
}

async function signedAddress(source, key) {
  const address = await source.signedUrl(key);
  settle(isHttp(address), `signedUrl: what it gives for ${key} is no URL`);
  return address;
}

async function body(response, key, limit, corrupt) {
  const pieces = [];
  let size = 0;
  for await (const piece of response.body ?? []) {
    size += piece.length;
    if (size > limit) {
      throw new ReleaseError(corrupt ? "corrupt" : "too-large", `${key} is larger than ${limit} bytes`);
    }
    pieces.push(piece);
  }
  const bytes = new Uint8Array(size);
  let offset = 0;
  for (const piece of pieces) {
    bytes.set(piece, offset);
    offset += piece.length;
  }
  return bytes;
}

/** Translate a refusal to an error; Supabase's real status is in the body of a 400. */
async function refusal(response, key) {
  let said = {};
  try {
    said = JSON.parse(new TextDecoder().decode(await body(response, key, 65_536, false)));
  } catch {
    // A page of a gateway.
  }
  const status = response.status < 500 ? Number(said?.statusCode ?? response.status) : response.status;
  if (status === 404 && (said?.code === "NoSuchKey" || said?.message === "Object not found")) {
    return new ReleaseError("absent", `${key} is not there, or hidden by a policy`);
  }
  if (status >= 500 || status === 429) return new ReleaseError("unavailable", `${key}: HTTP ${status}`);
  return new ReleaseError("denied", `${key}: HTTP ${status}; check the key and the bucket's policy`);
}

/** Parse a JSON object that every parser reads in the same way. */
function jsonObject(bytes) {
  const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  const value = JSON.parse(text);
  if (!isObject(value)) throw new Error("no object");
  refuseAmbiguous(text);
  return value;
}

// JSON.parse keeps the last of two equal names, while another parser may keep the first. It rounds large whole numbers, and
// accepts 1e999 and half a surrogate pair, which cannot be written back.
function refuseAmbiguous(text) {
  const open = [];
  let before = "";
  for (const [token] of text.matchAll(/"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\]:,]|[^\s{}[\]:,"]+/g)) {
    if (token === "}" || token === "]") open.pop();
    else if (token === ":") {
      const name = JSON.parse(before);
      if (open.at(-1).has(name)) throw new Error("a name comes twice");
      open.at(-1).add(name);
    } else if (token !== ",") {
      if (open.length >= NESTING_LIMIT) throw new Error("nested too deeply");
      if (token === "{" || token === "[") open.push(new Set());
      else if (token.startsWith('"')) refuseHalfCharacters(token);
      else if (/^[-\d]/.test(token)) refuseInexact(token);
    }
    before = token;
  }
}

function refuseHalfCharacters(token) {
  if (token.includes("\\u") && /\p{Surrogate}/u.test(JSON.parse(token))) throw new Error("half a surrogate pair");
}

function refuseInexact(token) {
  const isHeld = /[.eE]/.test(token) ? Number.isFinite : isWhole;
  if (!isHeld(Number(token))) throw new Error("a number that JavaScript cannot hold");
}

/** Return the milliseconds since 1970 of an RFC 3339 time; NaN if it is none. */
function instant(text) {
  const [, day, time, fraction = "", sign, hours, minutes] = TIME.exec(text) ?? [];
  const local = Date.parse(`${day}T${time}Z`);
  // Date.parse reads 30 February as 2 March.
  if (Number.isNaN(local) || new Date(local).toISOString() !== `${day}T${time}.000Z`) return NaN;
  const ahead = sign === undefined ? 0 : Number(`${sign}1`) * (Number(hours) * 60 + Number(minutes)) * 60_000;
  const at = local + Number(`0${fraction}`) * 1000 - ahead;
  return at >= FIRST_YEAR && at < AFTER_LAST_YEAR ? at : NaN;
}

function isRunId(text) {
  const [, year, month, day, hour, minute, second] = RUN_ID.exec(text) ?? [];
  return isTime(`${year}-${month}-${day}T${hour}:${minute}:${second}Z`);
}

function parse(bytes) {
  try {
    return jsonObject(bytes);
  } catch (error) {
    throw new ReleaseError("malformed", "the manifest is no JSON object", { cause: error });
  }
}

/** Refuse a value that is no manifest, or whose paths differ from the layout. */
function check(manifest, { model, channel, signed }) {
  const wrong = Object.keys(MANIFEST).find((field) => !MANIFEST[field](manifest[field]));
  if (wrong !== undefined) throw new ReleaseError("malformed", `${wrong} is not as the format has it`);
  if (manifest.model_name !== model || manifest.channel !== channel) {
    throw new ReleaseError("wrong", "it is the manifest of another model or channel");
  }
  const { current, previous = [] } = manifest;
  for (const pointer of [current, ...previous]) checkPaths(pointer, model);
  const { files = {} } = current;
  if (!Object.keys(files).every(isPlain)) throw new ReleaseError("path", "a file's name leads elsewhere");
  const towers = [current.user_onnx_path, current.item_onnx_path].filter(isText).map((path) => path.split("/").at(-1));
  const needed = [`${model}_${current.run_id}.onnx`, "model_meta.json", "metrics.json", ...towers];
  if (signed && !needed.every((name) => Object.hasOwn(files, name))) {
    throw new ReleaseError("malformed", "it is signed, but has no record of every file");
  }
}

function checkPaths(pointer, model) {
  if (!isRunId(pointer.run_id)) throw new ReleaseError("path", "a run_id is none");
  const prefix = `${model}/${pointer.run_id}/`;
  const expected = {
    onnx_path: `${prefix}${model}_${pointer.run_id}.onnx`,
    meta_path: `${prefix}model_meta.json`,
    metrics_path: `${prefix}metrics.json`,
    user_onnx_path: `${prefix}${model}_${pointer.run_id}.user.onnx`,
    item_onnx_path: `${prefix}${model}_${pointer.run_id}.item.onnx`,
  };
  for (const [field, path] of Object.entries(expected)) {
    if ((pointer[field] ?? path) !== path) throw new ReleaseError("path", `${field} leads elsewhere`);
  }
}

function checkOrder({ sequence }, digest, known, minSequence) {
  const seen = Math.max(known?.sequence ?? 0, minSequence);
  if (sequence < seen) throw new ReleaseError("replayed", `sequence ${sequence}, and ${seen} was seen before`);
  if (known?.sequence === sequence && known.digest !== digest) {
    throw new ReleaseError("forked", `sequence ${sequence} was seen before with other content`);
  }
}

function checkAge({ confirmed_at, current }, maxAgeSeconds, now) {
  const time = confirmed_at ?? current.published_at;
  const age = now - instant(time);
  // This form also refuses NaN, from a clock that is broken.
  if (!(age >= -CLOCK_SKEW_MS)) {
    throw new ReleaseError("future", `it was published at ${time}, and this machine's clock says ${new Date(now).toUTCString()}`);
  }
  if (!(age <= maxAgeSeconds * 1000)) throw new ReleaseError("expired", `it was published at ${time}, longer ago than maxAgeSeconds`);
}

/** Return the id of the trusted key that made a detached JWS (RFC 7515, appendix F), ES256. */
async function signer(signature, text, keys, required) {
  if (signature === undefined || signature === null) {
    if (required) throw new ReleaseError("unsigned", "the manifest is not signed");
    return undefined;
  }
  if (keys.size === 0) return undefined;
  let encoded, header, end;
  try {
    [, encoded, end] = SIGNATURE.exec(isText(signature) ? signature : "");
    header = jsonObject(fromBase64url(encoded));
    end = fromBase64url(end);
  } catch (error) {
    throw new ReleaseError("signature", "it is no detached JWS", { cause: error });
  }
  // Only these two members, so a signature cannot bring its own key or rules.
  if (header.alg !== "ES256" || !isText(header.kid) || Object.keys(header).length !== 2) {
    throw new ReleaseError("signature", "its header has another form");
  }
  const key = keys.get(header.kid);
  if (key === undefined) throw new ReleaseError("unknown-key", `key ${JSON.stringify(header.kid.slice(0, 60))} is not trusted`);
  const signed = new TextEncoder().encode(`${encoded}.${toBase64url(new TextEncoder().encode(text))}`);
  const good = await crypto.subtle.verify({ name: "ECDSA", hash: "SHA-256" }, key, end, signed);
  if (!good) throw new ReleaseError("signature", "the manifest was changed after it was signed");
  return header.kid;
}

/** Return the keys by their RFC 7638 thumbprint. */
async function trusted(pems) {
  settle(Array.isArray(pems), "trustedKeys: expected a list of keys");
  const keys = new Map();
  for (const pem of pems) {
    try {
      const encoded = /-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----/.exec(pem)[1];
      const der = Uint8Array.from(atob(encoded.replace(/\s/g, "")), (character) => character.charCodeAt(0));
      const key = await crypto.subtle.importKey("spki", der, { name: "ECDSA", namedCurve: "P-256" }, true, ["verify"]);
      const { crv, kty, x, y } = await crypto.subtle.exportKey("jwk", key);
      const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(JSON.stringify({ crv, kty, x, y })));
      keys.set(toBase64url(new Uint8Array(digest)), key);
    } catch (error) {
      throw new ReleaseError("settings", "a trusted key is no public P-256 key in PEM", { cause: error });
    }
  }
  return keys;
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function toBase64url(bytes) {
  let text = "";
  for (let start = 0; start < bytes.length; start += 8192) text += String.fromCharCode(...bytes.subarray(start, start + 8192));
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function fromBase64url(text) {
  return Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (character) => character.charCodeAt(0));
}

function freeze(value) {
  for (const item of Object.values(value)) {
    if (item !== null && typeof item === "object" && !ArrayBuffer.isView(item) && !Object.isFrozen(item)) freeze(item);
  }
  return Object.freeze(value);
}
