// Reads options as JSON from standard input, resolves and fetches with the example's own file, and prints what came of it.
import { canonical, fetchFile, resolve } from "../../examples/edge-function/release.mjs";

const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const { steps, options } = JSON.parse(Buffer.concat(chunks).toString());
const said = [];
let previous;
for (const step of steps) {
  try {
    if (step.canonical !== undefined) {
      said.push({ canonical: canonical(JSON.parse(step.canonical)) });
      continue;
    }
    if (step.put) await fetch(step.put.url, { method: "PUT", headers: step.put.headers, body: step.put.body });
    const signedUrl = options.signed ? (key) => options.signed[key] : undefined;
    const release = await resolve({ ...options, ...step.options, signedUrl, previous: step.previous ? previous : undefined });
    previous = release;
    const { runId, sequence, signed, keyId, onnxPath } = release;
    const file = step.fetch === undefined ? undefined : Buffer.from(await fetchFile(release, step.fetch || undefined)).toString("base64");
    said.push({ runId, sequence, signed, keyId, onnxPath, file, frozen: Object.isFrozen(release.files) });
  } catch (error) {
    said.push({ code: error.code ?? `unexpected: ${error.stack}` });
  }
}
console.log(JSON.stringify(said));
