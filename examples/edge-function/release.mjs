// Resolve, verify and fetch a model's release from Supabase Storage. Web Crypto and fetch only: runs in a Supabase Edge
// Function (Deno) and in Node 18 or later. What it checks is what the Python consumer checks; docs/format.md of
// mlflow-supabase-bridge describes the documents. Apache-2.0.

// Node 18 has no global one.
const crypto = globalThis.crypto ?? (await import("node:crypto")).webcrypto;
const DOCUMENT_LIMIT_BYTES = 1_000_000;
const NESTING_LIMIT = 64;
const CLOCK_SKEW_MS = 5 * 60_000;
const MODEL = /^[A-Za-z0-9][A-Za-z0-9_!.*'()&$=;,+ -]{0,119}$/;
const CHANNEL = /^[a-z][a-z0-9_-]{0,62}$/;
const RUN_ID = /^[0-9]{8}T[0-9]{6}Z(-[A-Za-z0-9._-]{1,64})?$/;
const FILE = /^[A-Za-z0-9_/!.*'()&$@=;:+,? -]+$/;
const SIGNATURE = /^([A-Za-z0-9_-]{1,400})\.\.([A-Za-z0-9_-]{1,200})$/;
const SHA256 = /^[0-9a-f]{64}$/;

/** Why a release is not had. `code` is one of: absent, denied, unavailable, late, too-large, redirected, malformed, unsigned,
 * signature, unknown-key, wrong, path, replayed, forked, expired, corrupt, settings. */
export class ReleaseError extends Error {
  constructor(code, message, options) {
    super(message, options);
    this.name = "ReleaseError";
    this.code = code;
  }
}

/**
 * The release that a channel names now.
 *
 * @param {object} options
 * @param {string} options.model the model's folder in the bucket
 * @param {string} [options.channel] "latest" by default
 * @param {string} [options.url] the project's URL; or
 * @param {(key: string) => string | Promise<string>} [options.signedUrl] signs a URL for an object's key
 * @param {string} [options.key] an anon or service key; without one the bucket must be public
 * @param {string} [options.bucket] "models" by default
 * @param {string[]} [options.trustedKeys] public keys in PEM; where there are any, an unsigned manifest is refused
 * @param {boolean} [options.requireSignature] to say otherwise
 * @param {number} [options.maxAgeSeconds] how long ago the manifest may have been published
 * @param {object} [options.previous] what an earlier call returned: an unchanged manifest is not sent again, an older one is
 *   refused
 * @param {number} [options.minSequence] the highest sequence that was seen, where only that was kept
 * @param {number} [options.timeoutMs] how long it may take in all, 10 s by default
 * @param {typeof fetch} [options.fetch]
 * @returns {Promise<object>} frozen: model, channel, runId, sequence, publishedAt, signed, keyId, files, onnxPath, metaPath,
 *   metricsPath, manifest
 */
export async function resolve(options) {
  const { model, channel = "latest", previous, now = () => Date.now() } = options;
  const keys = await trusted(options.trustedKeys ?? []);
  const required = options.requireSignature ?? keys.size > 0;
  if (typeof model !== "string" || !MODEL.test(model) || /[ .]$/.test(model)) throw new ReleaseError("settings", "no model");
  if (!CHANNEL.test(channel)) throw new ReleaseError("settings", `${channel} cannot be a channel`);
  if (required && keys.size === 0) throw new ReleaseError("settings", "a signature is required, and no key is trusted");
  const known = previous?.model === model && previous.channel === channel ? previous : undefined;

  const key = `${model}/${channel}/manifest.json`;
  const source = reading(options);
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
  const seen = Math.max(known?.sequence ?? 0, options.minSequence ?? 0);
  if (manifest.sequence < seen) throw new ReleaseError("replayed", `sequence ${manifest.sequence}, and ${seen} was seen before`);
  if (known?.sequence === manifest.sequence && known.digest !== digest) {
    throw new ReleaseError("forked", `sequence ${manifest.sequence} was seen before with other content`);
  }
  const { current } = manifest;
  if (options.maxAgeSeconds !== undefined) {
    const age = now() - Date.parse(manifest.confirmed_at ?? current.published_at);
    if (!(age >= -CLOCK_SKEW_MS && age <= options.maxAgeSeconds * 1000)) throw new ReleaseError("expired", "too old");
  }
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
  });
}

/**
 * One file of a release, compared with the size and SHA-256 that its manifest records.
 *
 * @param {object} release what `resolve` returned
 * @param {string} name the file's name; by default the ONNX file
 * @param {{timeoutMs?: number}} [options] how long it may take, 60 s by default
 * @returns {Promise<Uint8Array>}
 */
export async function fetchFile(release, name = release.onnxPath.split("/").at(-1), { timeoutMs = 60_000 } = {}) {
  const record = Object.hasOwn(release.files, name) ? release.files[name] : undefined;
  if (record === undefined) throw new ReleaseError("absent", `the manifest has no record of ${name}`);
  const key = `${release.model}/${release.runId}/${name}`;
  const { bytes } = await read({ ...release.source, timeoutMs }, key, { limit: record.size_bytes, corrupt: true });
  if (bytes.length !== record.size_bytes || (await sha256(bytes)) !== record.sha256) {
    throw new ReleaseError("corrupt", `${key} is not as recorded`);
  }
  return bytes;
}

/** RFC 8785: the one text of a JSON value. JSON.stringify writes numbers and texts as it asks; keys go by UTF-16 units. */
export function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const members = Object.keys(value).sort().map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`);
  return `{${members.join(",")}}`;
}

function reading({ url, bucket = "models", key, signedUrl, timeoutMs = 10_000, fetch: fetching = globalThis.fetch }) {
  if (Boolean(url) === Boolean(signedUrl)) throw new ReleaseError("settings", "give url or signedUrl");
  return { url, bucket, key, signedUrl, timeoutMs, fetching };
}

/** An object's bytes, at most `limit` of them, within the time; no bytes where it is unchanged. */
async function read(source, key, { limit, headers = {}, fresh = false, conditional = false, corrupt = false }) {
  const signal = AbortSignal.timeout(source.timeoutMs);
  const path = key.split("/").map(encodeURIComponent).join("/");
  const route = source.key ? "object" : "object/public";
  // No cache on the way knows a new nonce: a hosted CDN may be a minute behind.
  const own = `${source.url}/storage/v1/${route}/${encodeURIComponent(source.bucket)}/${path}`;
  const address = source.signedUrl ? await source.signedUrl(key) : own + (fresh ? `?cacheNonce=${crypto.randomUUID()}` : "");
  const sent = source.key && !source.signedUrl ? { apikey: source.key, authorization: `Bearer ${source.key}` } : {};
  try {
    const response = await source.fetching(address, {
      headers: { "accept-encoding": "identity", ...sent, ...headers },
      redirect: "manual", // A key goes to the project and nowhere else.
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
    if (signal.aborted) throw new ReleaseError("late", `${key} did not come in ${source.timeoutMs} ms`, { cause: error });
    throw new ReleaseError("unavailable", `${key} could not be read`, { cause: error });
  }
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

/** What a refusal means; Supabase's real status is in the body of a 400. */
async function refusal(response, key) {
  let said = {};
  try {
    said = JSON.parse(new TextDecoder().decode(await body(response, key, 65_536, false)));
  } catch {
    // A gateway's own page.
  }
  const status = response.status < 500 ? Number(said?.statusCode ?? response.status) : response.status;
  if (status === 404 && (said?.code === "NoSuchKey" || said?.message === "Object not found")) {
    return new ReleaseError("absent", `${key} is not there, or hidden by a policy`);
  }
  if (status >= 500 || status === 429) return new ReleaseError("unavailable", `${key}: HTTP ${status}`);
  return new ReleaseError("denied", `${key}: HTTP ${status}; check the key and the bucket's policy`);
}

// Whether an object of a valid JSON text has a name twice: JSON.parse keeps the last, another reader may keep the first.
function namesTwice(text) {
  const open = [];
  let before = "";
  for (const [token] of text.matchAll(/"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\]:,]/g)) {
    if (token === "{" || token === "[") open.push(new Set());
    else if (token === "}" || token === "]") open.pop();
    else if (token === ":") {
      const name = JSON.parse(before);
      if (open.at(-1).has(name)) return true;
      open.at(-1).add(name);
    }
    before = token;
  }
  return false;
}

function parse(bytes) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    const value = JSON.parse(text);
    if (namesTwice(text)) throw new Error("a name comes twice");
    if (value === null || typeof value !== "object" || Array.isArray(value)) throw new Error("no object");
    let level = [value];
    for (let depth = 0; level.length > 0; depth += 1) {
      if (depth > NESTING_LIMIT) throw new Error("nested too deeply");
      level = level.flatMap((item) => Object.values(item)).filter((item) => item !== null && typeof item === "object");
    }
    return value;
  } catch (error) {
    throw new ReleaseError("malformed", "the manifest is no JSON object", { cause: error });
  }
}

/** Refuse what is not exactly where the layout has it. */
function check(manifest, { model, channel, signed }) {
  const { current, files = current?.files } = manifest;
  if (manifest.model_name !== model || manifest.channel !== channel) {
    throw new ReleaseError("wrong", "it is the manifest of another model or channel");
  }
  if (!Number.isSafeInteger(manifest.sequence) || manifest.sequence < 1 || typeof current !== "object" || current === null) {
    throw new ReleaseError("malformed", "no sequence, or no current release");
  }
  if (Number.isNaN(Date.parse(current.published_at))) throw new ReleaseError("malformed", "no published_at");
  for (const pointer of [current, ...(manifest.previous ?? [])]) {
    if (typeof pointer?.run_id !== "string" || !RUN_ID.test(pointer.run_id)) throw new ReleaseError("path", "no run_id");
    const prefix = `${model}/${pointer.run_id}/`;
    const expected = {
      onnx_path: `${prefix}${model}_${pointer.run_id}.onnx`,
      meta_path: `${prefix}model_meta.json`,
      metrics_path: `${prefix}metrics.json`,
    };
    for (const [field, path] of Object.entries(expected)) {
      const optional = pointer !== current && field !== "onnx_path";
      if (pointer[field] !== path && !(optional && pointer[field] === undefined)) {
        throw new ReleaseError("path", `${field} leads elsewhere`);
      }
    }
  }
  for (const [name, record] of Object.entries(files ?? {})) {
    if (!FILE.test(name) || name.split("/").some((part) => ["", ".", ".."].includes(part) || part.length > 255)) {
      throw new ReleaseError("path", "a file's name leads elsewhere");
    }
    if (!Number.isSafeInteger(record?.size_bytes) || record.size_bytes < 0 || !SHA256.test(record.sha256)) {
      throw new ReleaseError("malformed", `no record of ${name}`);
    }
  }
  const needed = [`${model}_${current.run_id}.onnx`, "model_meta.json", "metrics.json"];
  if (signed && !needed.every((name) => Object.hasOwn(files ?? {}, name))) {
    throw new ReleaseError("malformed", "it is signed, but has no record of every file");
  }
}

/** The id of the trusted key that signed: a detached JWS (RFC 7515, appendix F), ES256. */
async function signer(signature, text, keys, required) {
  if (signature === undefined) {
    if (required) throw new ReleaseError("unsigned", "the manifest is not signed");
    return undefined;
  }
  if (keys.size === 0) return undefined;
  const parts = typeof signature === "string" ? SIGNATURE.exec(signature) : null;
  let header;
  try {
    header = JSON.parse(new TextDecoder().decode(fromBase64url(parts[1])));
  } catch (error) {
    throw new ReleaseError("signature", "it is no detached JWS", { cause: error });
  }
  // Nothing but these two: nothing in a signature can bring its own key or rules.
  if (header?.alg !== "ES256" || typeof header.kid !== "string" || Object.keys(header).length !== 2) {
    throw new ReleaseError("signature", "its header has another form");
  }
  const key = keys.get(header.kid);
  if (key === undefined) throw new ReleaseError("unknown-key", `key ${header.kid.slice(0, 60)} is not trusted`);
  const signed = new TextEncoder().encode(`${parts[1]}.${toBase64url(new TextEncoder().encode(text))}`);
  const good = await crypto.subtle.verify({ name: "ECDSA", hash: "SHA-256" }, key, fromBase64url(parts[2]), signed);
  if (!good) throw new ReleaseError("signature", "the manifest was changed after it was signed");
  return header.kid;
}

/** Keys by their RFC 7638 thumbprint. */
async function trusted(pems) {
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
