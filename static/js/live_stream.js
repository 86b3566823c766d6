// One event stream per page, closed while nobody looks; after three failures in a row it polls instead.
// `follow` hands every piece of news to the page; knows nothing of what the news is about.

const POLL_MILLISECONDS = 3000;
const FAILURES = 3;

export function follow({ streamUrl, pollUrl, cursor, onPoints, onProgress, onEnd }) {
  let source = null;
  let timer = null;
  let failures = 0;
  let over = false;
  let sign = "";

  const note = (event) => {
    if (event.lastEventId) cursor = event.lastEventId;
    failures = 0;
    return JSON.parse(event.data);
  };
  const end = () => {
    over = true;
    stop();
    onEnd();
  };

  function open() {
    source = new EventSource(`${streamUrl}?since=${encodeURIComponent(cursor)}`);
    source.addEventListener("points", (event) => onPoints(note(event)));
    source.addEventListener("progress", (event) => onProgress(note(event)));
    source.addEventListener("end", end);
    source.onerror = () => {
      failures += 1;
      // A refused stream is closed for good, a broken one comes back by itself.
      if (failures >= FAILURES || source.readyState === EventSource.CLOSED) {
        stop();
        if (failures >= FAILURES) poll();
        else timer = setTimeout(open, POLL_MILLISECONDS);
      }
    };
  }

  async function poll() {
    try {
      const answer = await fetch(`${pollUrl}?since=${encodeURIComponent(cursor)}`, { headers: { Accept: "application/json" } });
      if (answer.ok && !answer.redirected) {
        const facts = await answer.json();
        cursor = facts.cursor ?? cursor;
        onPoints(facts);
        if (facts.sign !== sign) onProgress(facts);
        sign = facts.sign;
        if (facts.over) return end();
      }
    } catch {
      // The server is away for a moment: the next turn asks again.
    }
    if (!over && !document.hidden) timer = setTimeout(poll, POLL_MILLISECONDS);
    return undefined;
  }

  function stop() {
    source?.close();
    source = null;
    clearTimeout(timer);
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
