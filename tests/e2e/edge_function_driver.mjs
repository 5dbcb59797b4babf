// Reads options as JSON from standard input, resolves and fetches with the example's own file, and prints what came of it.
// A step: {options} of its own; {put} before it; {manifest}, the bytes in base64 to answer every request with; {now} in ms;
// {previous: true} gives back the last release; {fetch} a file, of that release as {release} changes it.
import { Buffer } from "node:buffer";
import process from "node:process";
import { text } from "node:stream/consumers";
import { canonical, fetchFile, resolve } from "../../examples/edge-function/release.mjs";

const { steps, options } = JSON.parse(await text(process.stdin));
const said = [];
let previous;

function own({ manifest, now }, signed) {
  const made = {};
  if (signed !== undefined) made.signedUrl = signed === "never" ? () => new Promise(() => {}) : (key) => signed[key];
  if (manifest !== undefined) made.fetch = async () => new Response(Buffer.from(manifest, "base64"));
  if (now !== undefined) made.now = () => now;
  return made;
}

for (const step of steps) {
  try {
    if (step.canonical !== undefined) {
      said.push({ canonical: canonical(JSON.parse(step.canonical)) });
      continue;
    }
    if (step.put) await fetch(step.put.url, { method: "PUT", headers: step.put.headers, body: step.put.body });
    const { signed: urls, ...given } = { ...options, ...step.options };
    const release = await resolve({ ...given, ...own(step, urls), previous: step.previous ? previous : undefined });
    previous = release;
    const { runId, sequence, signed, keyId, onnxPath, userOnnxPath } = release;
    const changed = step.release ? { ...release, ...step.release } : release;
    const file = step.fetch === undefined ? undefined : Buffer.from(await fetchFile(changed, step.fetch || undefined)).toString("base64");
    said.push({ runId, sequence, signed, keyId, onnxPath, userOnnxPath, file, frozen: Object.isFrozen(release.files) });
  } catch (error) {
    said.push(error.name === "ReleaseError" ? { code: error.code, message: error.message } : { code: `raw: ${error.stack}` });
  }
}
console.log(JSON.stringify(said));
