// Calls back with the current release, and with each later one, until `stop()`.
import { resolve } from "./release.mjs";

const SHORTEST_MS = 1_000; // between two polls, because anyone with the publishable key can send hints

/**
 * Polls with `resolve(options)`. With `realtime` (a client of @supabase/supabase-js or @supabase/realtime-js) it also
 * listens for hints of a switch: then a poll follows at once, and while the subscription lives the others are `lazyMs` apart.
 * A hint carries nothing and is trusted with nothing: a lost one costs an interval, a forged one a request.
 */
export function watch(options, callback, { realtime, intervalMs = 30_000, lazyMs = 300_000, onError = console.error } = {}) {
  const topic = `releases:${options.bucket ?? "models"}:${options.model}:${options.channel ?? "latest"}`;
  let release, timer, subscription;
  let polling = false, hinted = false, alive = false, stopped = false;
  let polledAt = -Infinity, failures = 0;

  function schedule() {
    clearTimeout(timer);
    if (stopped || polling) return;
    const longest = Math.max(lazyMs, intervalMs);
    const pause = alive && failures === 0 ? longest : Math.min(longest, intervalMs * 2 ** Math.min(failures, 30));
    const due = hinted ? Math.max(0, polledAt + SHORTEST_MS - Date.now()) : pause * (1 + Math.random() / 4);
    timer = setTimeout(poll, due);
  }

  async function poll() {
    polling = true;
    hinted = false;
    polledAt = Date.now();
    const before = release;
    try {
      release = await resolve({ ...options, previous: release });
      failures = 0;
    } catch (error) {
      failures += 1; // during an outage, or after a refused manifest, the last release stays
      onError(error);
    }
    try {
      if (release?.runId !== before?.runId && !stopped) await callback(release);
    } catch (error) {
      onError(error);
    }
    polling = false;
    schedule();
  }

  function changed() {
    hinted = true;
    schedule();
  }

  if (realtime) {
    subscription = realtime.channel(topic).on("broadcast", { event: "switched" }, changed);
    subscription.subscribe((status) => {
      if ((status === "SUBSCRIBED") === alive) return;
      alive = status === "SUBSCRIBED";
      changed();
    });
  }
  poll();
  return {
    stop() {
      stopped = true;
      clearTimeout(timer);
      if (subscription) realtime.removeChannel(subscription);
    },
  };
}
