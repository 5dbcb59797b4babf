// Runs lines of a document. Arguments: the lines, and the variable whose value is printed as JSON.
// Standard input: {url, key, given} as JSON; `supabase` is a client of PostgREST, and each member of `given` is a variable.
import { text } from "node:stream/consumers";
import process from "node:process";
import { PostgrestClient } from "@supabase/postgrest-js";

const [lines, result] = process.argv.slice(2);
const { url, key, given } = JSON.parse(await text(process.stdin));
const supabase = new PostgrestClient(`${url}/rest/v1`, { headers: { apikey: key, Authorization: `Bearer ${key}` } });
const body = `return (async () => { ${lines}; if (error) throw new Error(error.message); return ${result}; })()`;
console.log(JSON.stringify(await new Function("supabase", ...Object.keys(given), body)(supabase, ...Object.values(given))));
