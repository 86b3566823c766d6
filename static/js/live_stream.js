// One event stream per page, closed while the tab is hidden. After three failures in a row, or when the stream is silent,
// the page is updated by polling.

import { fetchJson, reportConnection } from "./line.js";

const POLL_MILLISECONDS = 3000;
const FAILURES = 3;
// The server sends an event at least every 15 s.
const QUIET_MILLISECONDS = 15000;
const SILENT_MILLISECONDS = 40000;

// `onProgress` and `onEnd` return whether the page was updated.
export function follow({ streamUrl, pollUrl, cursor, onPoints, onProgress, onEnd }) {
  let source = null;
  let timer = null;
  let watchdog = null;
  let turn = 0; // increased by stop(): answers to earlier requests are ignored
  let failures = 0;
  let lost = false;
  let over = false;
  let sign = "";
  let renewed = 0;

  const note = (event) => {
    if (event.lastEventId) cursor = event.lastEventId;
    failures = 0;
    watch();
    return JSON.parse(event.data);
  };

  function watch() {
    clearTimeout(watchdog);
    watchdog = setTimeout(() => {
      stop();
      poll();
    }, SILENT_MILLISECONDS);
  }

  function open() {
    source = new EventSource(`${streamUrl}?since=${encodeURIComponent(cursor)}`);
    source.addEventListener("points", (event) => onPoints(note(event)));
    source.addEventListener("progress", (event) => onProgress(note(event)));
    source.addEventListener("end", end);
    // The database does not answer. The next event removes the notice.
    source.addEventListener("away", (event) => {
      note(event);
      reportConnection("offline");
    });
    source.onerror = () => {
      failures += 1;
      // The browser reconnects a broken stream, but not a refused one.
      if (failures >= FAILURES || source.readyState === EventSource.CLOSED) {
        stop();
        if (failures >= FAILURES) poll();
        else timer = setTimeout(open, POLL_MILLISECONDS);
      }
    };
    watch();
  }

  async function poll() {
    const mine = turn;
    const facts = await fetchJson(`${pollUrl}?since=${encodeURIComponent(cursor)}`);
    if (mine !== turn) return;
    if (facts) {
      cursor = facts.cursor ?? cursor;
      onPoints(facts);
      const stale = facts.sign !== sign || Date.now() - renewed > QUIET_MILLISECONDS;
      if (stale && (await onProgress(facts))) {
        sign = facts.sign;
        renewed = Date.now();
      }
      if (mine !== turn) return;
      if (facts.over) {
        end();
        return;
      }
      // The connection was lost, so streams may work again.
      if (lost) {
        lost = false;
        failures = 0;
        open();
        return;
      }
    } else lost = true;
    if (!document.hidden) timer = setTimeout(poll, POLL_MILLISECONDS);
  }

  // The page is not updated after the end, so it must show the final state.
  async function end() {
    stop();
    const mine = turn;
    if (await onEnd()) over = true;
    else if (mine === turn) timer = setTimeout(end, POLL_MILLISECONDS);
  }

  function stop() {
    turn += 1;
    source?.close();
    source = null;
    clearTimeout(timer);
    clearTimeout(watchdog);
  }

  document.addEventListener("visibilitychange", () => {
    if (over) return;
    stop();
    if (!document.hidden) {
      failures = 0;
      open();
    }
  });
  window.addEventListener("pagehide", stop);
  if (!document.hidden) open();
}
