// Runs the example's index.ts as an isolate does: `node edge_function_isolate.mjs <a copy of it>`; a line in is a request.
import { createInterface } from "node:readline";

let handler;
globalThis.Deno = { env: { get: (name) => process.env[name] }, serve: (served) => (handler = served) };
await import(process.argv[2]);
for await (const _ of createInterface({ input: process.stdin })) {
  const response = await handler(new Request("http://127.0.0.1/"));
  console.log(JSON.stringify({ status: response.status, body: await response.json() }));
}
