// Lists a bucket with Supabase's own client, by folder and by prefix, and downloads every object that it finds.
// Standard input: {url, key, bucket} as JSON. Standard output: {folders, prefix, objects: {key: SHA-256}, metadata: {key: ...}}.
import { createHash } from "node:crypto";
import { text } from "node:stream/consumers";
import { StorageClient } from "@supabase/storage-js";

const { url, key, bucket } = JSON.parse(await text(process.stdin));
const objects = new StorageClient(`${url}/storage/v1`, { apikey: key, Authorization: `Bearer ${key}` }).from(bucket);

function checked({ data, error }) {
  if (error) throw error;
  return data;
}

async function below(folder) {
  const found = [];
  for (const entry of checked(await objects.list(folder))) {
    const path = folder ? `${folder}/${entry.name}` : entry.name;
    found.push(...(entry.id === null ? await below(path) : [path]));
  }
  return found;
}

const folders = await below("");
const prefix = checked(await objects.listV2({ prefix: "", limit: 1000 })).objects.map((entry) => entry.key ?? entry.name);
const digests = {};
const metadata = {};
for (const path of folders) {
  const blob = checked(await objects.download(path));
  digests[path] = createHash("sha256").update(Buffer.from(await blob.arrayBuffer())).digest("hex");
  metadata[path] = checked(await objects.info(path)).metadata;
}
console.log(JSON.stringify({ folders, prefix, objects: digests, metadata }));
