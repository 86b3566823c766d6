// Asks the server on behalf of a live page. While no answer comes the frame says so, and takes it back with the next one.
// Not imported from frame.js: that is loaded under a name with a checksum, and would run a second time.

const PATIENCE_MILLISECONDS = 15000;
const AWAY = [502, 503, 504];
let told = "";

// What is wrong with the line, as the frame's notices name it; "" once it is back.
export function tell(trouble) {
  if (trouble === told) return;
  told = trouble;
  document.documentElement.dispatchEvent(new CustomEvent("graftworks:line", { detail: trouble }));
}

// The answer's body, or null where none came.
async function ask(address, accept, read) {
  let trouble = "offline";
  try {
    const answer = await fetch(address, {
      headers: { Accept: accept },
      redirect: "manual",
      signal: AbortSignal.timeout(PATIENCE_MILLISECONDS),
    });
    if (answer.ok) {
      const found = await read(answer);
      tell("");
      return found;
    }
    // Whoever is signed in no longer is sent to another page.
    if (answer.type === "opaqueredirect") trouble = "expired";
    else if (!AWAY.includes(answer.status)) trouble = "refused";
  } catch {
    // Nothing came, or not all of it.
  }
  tell(trouble);
  return null;
}

export const askJson = (address) => ask(address, "application/json", (answer) => answer.json());
export const askText = (address) => ask(address, "text/html, text/plain", (answer) => answer.text());
