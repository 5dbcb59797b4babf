// Runs the example's `watch` with Supabase's own Realtime client. Argument: {url, key, model, intervalMs} as JSON.
// Prints a line of JSON for each release. A line on standard input broadcasts a hint, as anyone with the key may; its end stops.
import { createInterface } from "node:readline";
import { RealtimeClient } from "@supabase/realtime-js";
import WebSocket from "ws";
import { watch } from "../../examples/edge-function/watch.mjs";

const { url, key, model, intervalMs } = JSON.parse(process.argv[2]);
const realtime = new RealtimeClient(`${url}/realtime/v1`, { params: { apikey: key }, transport: WebSocket });
const print = (value) => console.log(JSON.stringify(value));
const watching = watch({ url, key, model }, (release) => print({ runId: release.runId }), {
  realtime,
  intervalMs,
  onError: (error) => print({ code: error.code ?? String(error) }),
});
for await (const _line of createInterface({ input: process.stdin })) {
  const channel = realtime.getChannels()[0];
  print({ sent: await channel.send({ type: "broadcast", event: "switched", payload: {} }) });
}
watching.stop();
realtime.disconnect();
process.exit(0); // the client's timers would keep it for ten seconds
