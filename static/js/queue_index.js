// The queue page: opens the question before a job is stopped as a dialog, when it has arrived.

import { pauseWhileInUse } from "./refresh.js";

pauseWhileInUse("board");
document.getElementById("stop-job").addEventListener("htmx:afterSwap", (event) => {
  const dialog = event.currentTarget;
  if (!dialog.open) dialog.showModal();
});
