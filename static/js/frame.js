// The frame of every page: theme button, menus, dialogs, notices, focus after a refused form, copy buttons.
// Sends `graftworks:theme` to <html>, and receives `graftworks:line` (state of the connection) from live pages there.

const root = document.documentElement;
const notices = document.getElementById("notices");

function show(text, tone = "error") {
  const notice = document.createElement("div");
  notice.className = `notice notice-${tone}`;
  notice.textContent = text;
  notices.append(notice);
  return notice;
}

function notify(text) {
  if ([...notices.children].some((notice) => notice.textContent === text)) return;
  const notice = show(text);
  setTimeout(() => notice.remove(), 8000);
}

// A live page reports a lost connection. The notice stays until the page reports that the connection is back.
let connectionNotice = null;
root.addEventListener("graftworks:line", (event) => {
  connectionNotice?.remove();
  connectionNotice = event.detail ? show(notices.dataset[event.detail], "warning") : null;
  if (event.detail !== "expired") return;
  // Sign-in leads back to this page.
  connectionNotice.append(" ", Object.assign(document.createElement("a"), { href: location.href, textContent: notices.dataset.signIn }));
});

function themeButton(button) {
  const order = ["auto", "light", "dark"];
  const label = button.querySelector("[data-theme-label]");
  const show = () => {
    const text = button.dataset[root.dataset.themeChoice];
    label.textContent = text;
    button.title = text;
  };
  button.addEventListener("click", () => {
    const next = order[(order.indexOf(root.dataset.themeChoice) + 1) % order.length];
    try {
      localStorage.setItem("graftworks-theme", next);
    } catch {
      // Without storage the theme cannot be changed.
    }
    root.dispatchEvent(new CustomEvent("graftworks:theme-choice"));
  });
  root.addEventListener("graftworks:theme", show);
  show();
}

function closeMenus(except) {
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (menu !== except) menu.open = false;
  }
}

function openDialog(button) {
  const dialog = document.getElementById(button.getAttribute("commandfor"));
  if (dialog && !dialog.open) dialog.showModal();
}

async function copyText(button) {
  const source = document.getElementById(button.dataset.copy);
  const text = source.value ?? source.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // The clipboard requires https or loopback; elsewhere the text is selected for Ctrl-C.
    const range = document.createRange();
    range.selectNodeContents(source);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    return;
  }
  const label = button.querySelector("[data-copy-label]");
  const before = label.textContent;
  label.textContent = button.dataset.copied;
  setTimeout(() => (label.textContent = before), 2000);
}

function focusSummary(scope) {
  scope.querySelector?.("[data-focus]")?.focus();
}

// Signing in renews the CSRF token. A form of a page opened before then sends the present one, so that nothing typed is lost.
function csrfToken() {
  return document.cookie.match(/(?:^|;\s*)(?:__Host-)?csrf=([^;]+)/)?.[1];
}

function renewToken(event) {
  const field = event.target.elements?.csrfmiddlewaretoken;
  if (field) field.value = csrfToken() ?? field.value;
}

// Sends a form once on a double click.
function guardForm(event) {
  const form = event.target;
  if (form.method === "dialog" || event.submitter?.formMethod === "dialog") return;
  if (form.dataset.sent) {
    event.preventDefault();
    return;
  }
  form.dataset.sent = "yes";
  setTimeout(() => delete form.dataset.sent, 4000);
}

document.querySelectorAll("[data-theme-toggle]").forEach(themeButton);
focusSummary(document);

// Opens a link to a confirmation page as a dialog, if this page contains that dialog.
function openLinkedDialog(event) {
  const link = event.target.closest("a[data-dialog]");
  const dialog = link && document.getElementById(link.dataset.dialog);
  if (!dialog || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  if (!dialog.open) dialog.showModal();
}

document.addEventListener("click", (event) => {
  const menu = event.target.closest("details.menu");
  closeMenus(menu);
  openLinkedDialog(event);
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.copy) copyText(button);
  if (button.dataset.toggle) {
    const open = button.getAttribute("aria-expanded") !== "true";
    button.setAttribute("aria-expanded", String(open));
    document.getElementById(button.dataset.toggle).classList.toggle("is-open", open);
  }
  const invokes = button.getAttribute("command") === "show-modal";
  if (invokes && !("commandForElement" in HTMLButtonElement.prototype)) openDialog(button);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  const menu = document.querySelector("details.menu[open]");
  if (menu) {
    menu.open = false;
    menu.querySelector("summary").focus();
  }
});
// While capturing, so that scripts which send a form themselves find the present token.
document.addEventListener("submit", renewToken, true);
document.addEventListener("submit", guardForm);
window.addEventListener("pageshow", () => {
  document.querySelectorAll("form[data-sent]").forEach((form) => delete form.dataset.sent);
});

// Leaving a field refreshes the region beside it; a button that is being pressed there must stay.
document.body.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.target.querySelector("button:active")) event.detail.shouldSwap = false;
});
// A region in a form may find that the session has ended. The page stays, because its form may hold what somebody typed.
document.body.addEventListener("htmx:beforeOnLoad", (event) => {
  const { xhr, elt } = event.detail;
  if (!elt.closest("form")) return;
  const expired = Boolean(xhr.getResponseHeader("HX-Redirect"));
  root.dispatchEvent(new CustomEvent("graftworks:line", { detail: expired ? "expired" : null }));
  if (!expired) return;
  event.preventDefault();
  connectionNotice.querySelector("a").target = "_blank";
});
// No region is refreshed in a tab that nobody sees.
document.body.addEventListener("htmx:beforeRequest", (event) => {
  if (document.hidden && event.detail.elt.getAttribute("hx-trigger")?.startsWith("every ")) event.preventDefault();
});
document.body.addEventListener("htmx:configRequest", (event) => {
  const token = csrfToken();
  if (token) event.detail.headers["X-CSRFToken"] = token;
});
document.body.addEventListener("htmx:afterSwap", (event) => focusSummary(event.detail.target));
document.body.addEventListener("htmx:sendError", () => notify(notices.dataset.offline));
document.body.addEventListener("htmx:responseError", (event) => {
  const status = event.detail.xhr.status;
  if (status === 401) notify(notices.dataset.expired);
  else notify([502, 503, 504].includes(status) ? notices.dataset.offline : notices.dataset.refused);
});
