// Reports which release a consumer uses, into the table of docs/consumers.md ("Who runs what"). Apache-2.0.

const TABLE = "release_usage";
const NAME_LIMIT = 100;

/**
 * Return a function that reports the use of a release. Call it when the release is in use: its files are verified and loaded.
 *
 * It inserts one row for each switch, and none where the release is the one that it has reported. Its promise never
 * rejects and ends in time; do not await it before you answer: `EdgeRuntime.waitUntil(inUse(release))`.
 *
 * @param {object} options
 * @param {string} options.url the project's URL
 * @param {string} options.key the publishable key; the table's policy lets it insert only
 * @param {string} options.consumer the consumer's own name
 * @param {string} [options.bucket] "models" by default
 * @param {number} [options.timeoutMs] total timeout, 5 s by default
 * @param {typeof fetch} [options.fetch]
 * @param {(problem: string) => void} [options.onError] console.error by default
 * @returns {(release: object) => Promise<boolean>} resolves to whether a report was stored
 */
export function reporter({
  url, key, consumer, bucket = "models", timeoutMs = 5_000, fetch: fetching = globalThis.fetch, onError = console.error,
}) {
  let reported;
  return async function inUse(release) {
    const used = `${release.model} ${release.channel} ${release.runId}`;
    if (used === reported) return false;
    const before = reported;
    reported = used; // A second request of the same isolate does not report it again meanwhile.
    const problem = await insert(release);
    if (problem === undefined) return true;
    if (reported === used) reported = before;
    onError(`the use of ${release.runId} was not reported: ${problem}`);
    return false;
  };

  async function insert({ model, channel, runId, sequence }) {
    const row = {
      bucket, model, channel, run_id: runId, sequence, instance: "-", used_since: new Date().toISOString(),
      consumer: [...consumer].slice(0, NAME_LIMIT).join(""),
    };
    const stop = new AbortController();
    let timer;
    const late = new Promise((done) => {
      timer = setTimeout(() => done(`no answer in ${timeoutMs} ms`), timeoutMs);
    });
    const sent = (async () => {
      const response = await fetching(`${url.replace(/\/+$/, "")}/rest/v1/${TABLE}`, {
        method: "POST",
        headers: { apikey: key, authorization: `Bearer ${key}`, "content-type": "application/json", prefer: "return=minimal" },
        body: JSON.stringify(row),
        redirect: "manual", // The key is sent to the project only.
        signal: stop.signal,
      });
      return response.status === 201 ? undefined : `the data API answered ${response.status}`;
    })().catch((error) => error.name ?? "an error");
    try {
      return await Promise.race([sent, late]);
    } finally {
      clearTimeout(timer);
      stop.abort(); // Do not wait for the unread rest of a response.
    }
  }
}
