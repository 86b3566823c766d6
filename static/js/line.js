// Requests of live pages. While the server does not answer, the frame shows a notice.
// Uses an event instead of importing frame.js, which is loaded under a hashed name and would run twice.

const TIMEOUT_MILLISECONDS = 15000;
const UNAVAILABLE = [502, 503, 504];
let reported = "";

// Reports a connection problem by the name of its notice; "" ends the notice.
export function reportConnection(problem) {
  if (problem === reported) return;
  reported = problem;
  document.documentElement.dispatchEvent(new CustomEvent("graftworks:line", { detail: problem }));
}

// Returns the body of the answer, or null without one.
async function request(address, accept, read) {
  let problem = "offline";
  try {
    const response = await fetch(address, {
      headers: { Accept: accept },
      redirect: "manual",
      signal: AbortSignal.timeout(TIMEOUT_MILLISECONDS),
    });
    if (response.ok) {
      const body = await read(response);
      reportConnection("");
      return body;
    }
    // An expired session is redirected to the sign-in page.
    if (response.type === "opaqueredirect") problem = "expired";
    else if (!UNAVAILABLE.includes(response.status)) problem = "refused";
  } catch {
    // No answer, or an incomplete one.
  }
  reportConnection(problem);
  return null;
}

export const fetchJson = (address) => request(address, "application/json", (response) => response.json());
export const fetchText = (address) => request(address, "text/html, text/plain", (response) => response.text());
