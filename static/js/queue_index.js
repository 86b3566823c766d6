// The queue page.

import { pauseWhileInUse } from "./refresh.js";

pauseWhileInUse("board");
