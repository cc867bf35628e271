"use strict";

// The live page's script (live.js) shows one supervisor. This adds which one, and what can be done to it. Functions of
// live.js that are assigned to here are wrapped: they do what they did, and then what is added.
{
const SLOW = 330000;  // ms for an act: longer than the server waits for the broker
const OVER = new Set(["finished", "failed"]);  // stages of a reload

let fleet = [];       // in brief, all supervisors
let chosen = null;    // index of the one that is shown
const pasts = new Map();  // of those that were shown before: their charts
const handled = new Map();  // dead letters that were requeued or dropped from here, by "queue id": in words

// ------------------------------------------------------------------------------------------------------- to talk

/** The answer to a request: an object with `ok` and, if that is false, `because`. */
async function talk(path, options, patience) {
  try {
    const always = { cache: "no-store", credentials: "same-origin", signal: AbortSignal.timeout(patience) };
    const response = await fetch(path, { ...always, ...options });
    const said = await response.json();
    return { ok: response.ok, ...said };
  } catch (error) {
    const late = error.name === "TimeoutError";
    return { ok: false, because: late ? "No answer in time: look before you try again." : "workq ui does not answer: has it ended?" };
  }
}

/** Ask the chosen supervisor to act. */
function send(path, body = {}) {
  const headers = { "content-type": "application/json" };
  return talk(`supervisors/${chosen}/${path}`, { method: "POST", headers, body: JSON.stringify(body) }, SLOW);
}

/** What came of it, where it was asked for. */
function tell(node, said) {
  node.hidden = !said;
  if (!said) return;
  set(node, "data-tone", said.ok ? "good" : "bad");
  put(node, line(said.because || (said.ok ? "done" : "refused")));
}

/** Run this while the button says so; a second press does nothing. */
async function busily(button, act) {
  if (button.getAttribute("aria-busy") === "true") return;
  set(button, "aria-busy", "true");
  try {
    await act();
  } finally {
    set(button, "aria-busy", null);
  }
}

const on = (id, act) => $(id).addEventListener("click", () => busily($(id), act));

// ------------------------------------------------------------------------------------------------------- supervisors

function fleetNode(item) {
  const name = make("span", "name"), dead = make("span", "dead"), about = make("span", "about");
  const button = make("button", "", name, dead, about);
  button.type = "button";
  button.addEventListener("click", () => choose(item.number));
  const node = make("li", "", button);
  Object.assign(node, { button, name, dead, about });
  return node;
}

function moodOfAll(each) {
  if (each.error) return ["calm", each.error];
  const workers = `${each.consuming} of ${each.workers} consume`;
  const state = each.paused ? "paused" : each.ready ? each.state : `${each.state}, not ready`;
  const mood = each.paused ? "leave" : each.ready ? TONES[each.state] || "calm" : each.state === "draining" ? "leave" : "bad";
  return [mood, `${state} · ${workers} · ${count(each.waiting)} waiting`];
}

function showFleet() {
  const items = fleet.map((each, number) => ({ number, ...each }));
  $("nobody").hidden = items.length > 0;
  fill($("fleet"), items, ({ number }) => number, fleetNode, (node, each) => {
    const [mood, words] = moodOfAll(each);
    set(node.button, "data-tone", mood);
    set(node.button, "aria-current", each.number === chosen ? "true" : null);
    set(node.button, "title", each.address + (each.can_change ? "" : ", read-only"));
    put(node.name, line(each.queue || each.address));
    put(node.dead, each.dead ? several(each.dead, "dead letter") : "");
    put(node.about, line(words + (each.can_change ? "" : " · read-only")));
  });
}

function choose(number) {
  if (number === chosen) return;
  if (chosen !== null) pasts.set(chosen, { totals, rates: rates.points, depths: depths.points });
  chosen = number;
  const past = pasts.get(number) || { totals: [], rates: [], depths: [] };
  totals = past.totals;
  rates.points = past.rates;
  depths.points = past.depths;
  answer = null;
  failed = false;
  heardAt = 0;
  for (const id of ["main", "facts", "footer", "hands", "search"]) $(id).hidden = true;
  $("header").hidden = false;
  put($("queue"), line(fleet[number].queue || fleet[number].address));
  put($("handler"), "");
  paint("calm");
  put($("word"), "asking");
  put($("first"), "The supervisor is being asked.");
  put($("second"), "");
  tell($("outcome"), null);
  forget();
  history.replaceState(null, "", `#${number}`);
  showFleet();
  looked();
}

heard = async () => {
  const of = chosen;
  const said = await talk(`look?of=${of === null ? "" : of}`, {}, PATIENCE);
  if (!said.supervisors) {
    $("nobody").hidden = false;
    put($("nobody"), said.because);
    return null;
  }
  fleet = said.supervisors;
  if (!fleet.length) put($("nobody"), "No supervisor is found: start one, or name its socket with workq ui --control PATH.");
  showFleet();
  if (of === null && fleet.length) {
    const wanted = Number(location.hash.slice(1) || 0);
    choose(wanted < fleet.length ? wanted : 0);
    return heard();
  }
  return of === chosen ? said.status : null;
};

const showLiveState = showState;
showState = () => {
  if (chosen === null) {
    $("header").hidden = true;
    return;
  }
  showLiveState();
  const isOld = document.body.classList.contains("old");
  if (isOld && fleet[chosen].error) put($("first"), line(sentence(fleet[chosen].error)));
  for (const button of document.querySelectorAll("#hands button, .tile .kill")) button.disabled = isOld || button.isOut === true;
};

// ------------------------------------------------------------------------------------------------------- to ask first

let settled = null;  // what the open question leads to

/** Ask before something is done. `act` gets the choice and returns an answer: a refusal stays in the dialog. */
function question({ title, text, choices = [], yes, danger = false, act, then }) {
  put($("question-title"), title);
  put($("question-text"), text);
  $("question-choices").replaceChildren(...choices.map(({ value, label, about = "" }, n) => {
    const input = make("input");
    Object.assign(input, { type: "radio", name: "choice", value, checked: n === 0 });
    const node = make("label", "", input, label);
    if (about) node.append(make("span", "soft", about));
    return node;
  }));
  put($("question-yes"), yes);
  $("question-yes").classList.toggle("danger", danger);
  tell($("question-outcome"), null);
  settled = { act, then };
  $("question").showModal();
  // What destroys is never under the key that is pressed next.
  (danger ? $("question-no") : choices.length ? $("question-choices").querySelector("input") : $("question-yes")).focus();
}

on("question-yes", async () => {
  const asked = settled;
  const picked = $("question-choices").querySelector("input:checked");
  const said = await asked.act(picked ? picked.value : null);
  if (settled !== asked) return;
  if (!said.ok) {
    tell($("question-outcome"), said);
    return;
  }
  $("question").close();
  asked.then(said);
});
$("question-no").addEventListener("click", () => $("question").close());

// ------------------------------------------------------------------------------------------------------- verbs

const told = (said) => {
  tell($("outcome"), said);
  looked();
};

on("resume", async () => told(await send("resume")));
on("fewer", async () => told(await send("scale", { change: -1 })));
on("more", async () => told(await send("scale", { change: 1 })));

on("pause", () => question({
  title: `Pause ${line(answer.queue.name)}?`,
  text: "Workers take no new messages; tasks in flight finish, and messages wait in the queue.",
  choices: [
    { value: "", label: "until it is resumed" }, { value: "600", label: "for 10 minutes" },
    { value: "3600", label: "for an hour" },
  ],
  yes: "Pause",
  act: (seconds) => send("pause", seconds ? { seconds: Number(seconds) } : {}),
  then: told,
}));

on("reload", () => question({
  title: `Reload ${line(answer.queue.name)}?`,
  text: "Loads code and settings again, tries them with one worker, then replaces the others, each after its task. " +
    "If the new code fails, nothing changes.",
  choices: [
    { value: "", label: "All workers" },
    { value: "canary", label: "A canary first: a fifth of the workers for 10 minutes",
      about: "Failures, crashes and durations are compared; then it is finished or rolled back by itself." },
  ],
  yes: "Reload",
  act: (how) => send("reload", how ? { canary: 20, seconds: 600 } : {}),
  then: told,
}));

on("drain", () => question({
  title: `Drain ${line(answer.queue.name)}?`,
  text: `Finishes the tasks in flight, then stops this supervisor. A service manager may start it again; this page cannot.`,
  yes: "Drain and stop",
  danger: true,
  act: () => send("drain"),
  then: told,
}));

function kill(worker) {
  const name = worker.message_id === null ? null : line(worker.message_id);
  const choices = name === null ? [] : [
    { value: "", label: "The message runs again", about: "It is redelivered, and not blamed for this." },
    { value: "dead", label: "Dead-letter the message", about: "The next worker that gets it moves it there, with the reason “operator”." },
  ];
  question({
    title: `Kill worker ${worker.slot}?`,
    text: (name === null ? "It has no message in flight. " : `It runs ${name}. `) + "Its stack is logged first; a new worker follows at once.",
    choices,
    yes: "Kill",
    danger: true,
    // By what it runs, so that no other message's worker is killed if that has just finished.
    act: (choice) => send("kill", {
      target: worker.message_id === null ? String(worker.slot) : worker.message_id,
      kind: worker.message_id === null ? "slot" : "message",
      dead_letter: choice === "dead",
    }),
    then: told,
  });
}

const liveTile = tile;
tile = () => {
  const node = liveTile();
  const button = make("button", "kill danger", "Kill…");
  button.type = "button";
  button.addEventListener("click", () => kill(node.worker));
  node.append(make("div", "reach", button));
  node.kill = button;
  return node;
};

const showLiveWorker = showWorker;
showWorker = (node, worker) => {
  showLiveWorker(node, worker);
  node.worker = worker;
  node.kill.hidden = !worker.pid || !fleet[chosen].can_change;
  set(node.kill, "aria-label", `Kill worker ${worker.slot}`);
};

function out(id, is) {
  $(id).isOut = is;
  $(id).disabled = is;
}

function showHands() {
  $("hands").hidden = !fleet[chosen].can_change;
  const { wanted, least, most } = answer.scale;
  put($("wanted"), several(wanted, "worker"));
  set($("wanted"), "title", least < most ? `from ${least} to ${most}` : null);
  const leaves = answer.state === "draining" || answer.state === "stopped";
  out("fewer", leaves || wanted <= (least < most ? least : 1));
  out("more", leaves || (least < most && wanted >= most));
  for (const id of ["pause", "resume", "reload", "drain"]) out(id, leaves);
  $("pause").hidden = Boolean(answer.paused);
  $("resume").hidden = !answer.paused;
  const { reload } = answer;
  put($("reload"), reload && !OVER.has(reload.state) ? `Reload (${reload.state})…` : "Reload…");
}

const showLive = show;
show = (said) => {
  showLive(said);
  showHands();
  showSearch();
};

// ------------------------------------------------------------------------------------------------------- dead letters

const nameOf = (id) => `${chosen} ${id}`;

/** In the list of what this supervisor has dead-lettered: open it from the queue. */
const liveLetterNode = letterNode;
letterNode = (letter) => {
  const node = liveLetterNode(letter);
  const button = make("button", "", "Open in the queue…");
  button.type = "button";
  button.addEventListener("click", () => busily(button, () => openLetter(letter.message_id, outcome)));
  const outcome = make("p", "outcome");
  outcome.hidden = true;
  set(outcome, "role", "status");
  const gone = make("span", "gone");
  node.act = make("div", "act buttons", button, gone);
  node.gone = gone;
  node.messageId = letter.message_id;
  node.querySelector(".story").append(node.act, outcome);
  return node;
};

function showSearch() {
  const { letters } = fleet[chosen];
  $("search").hidden = !fleet[chosen].can_change;
  into.hidden = letters !== "";
  for (const id of ["look", "group"]) $(id).disabled = letters !== "";
  $("search-note").hidden = letters === "";
  if (letters) put($("search-note"), line(sentence(letters)) + ".");
  for (const node of $("letters").children) {
    node.act.hidden = letters !== "";
    put(node.gone, handled.get(nameOf(node.messageId)) || "");
  }
}

let shown = [];          // rows of the last list
const ticked = new Set();  // their ids

function forget() {
  shown = [];
  ticked.clear();
  $("found").replaceChildren();
  $("found").hidden = $("bulk").hidden = true;
  put($("search-count"), "");
  tell($("search-outcome"), null);
}

function conditions() {
  const field = $("field").value;
  return field && $("needle").value ? [`${field}~${$("needle").value}`] : [];
}

async function list(grouped) {
  const of = chosen;
  const said = await send("letters/list", { where: conditions(), group: grouped });
  if (of !== chosen) return;
  forget();
  if (!said.ok) {
    tell($("search-outcome"), said);
    return;
  }
  shown = said.rows;
  const what = grouped ? several(shown.length, "cause") : several(said.noted, "dead letter");
  const some = grouped || shown.length < said.count;
  const cut = some && !grouped && !conditions().length ? ", the oldest," : "";
  put($("search-count"), `${what}${cut}${some ? ` of ${count(said.count)}` : ""} in ${line(said.name)} on ${line(said.broker)}`);
  const words = [said.warning, said.held ? "another program holds some of them" : ""].filter(Boolean).join("; ");
  if (words) tell($("search-outcome"), { ok: false, because: words });
  $("found").hidden = !shown.length;
  $("bulk").hidden = grouped || !shown.length;
  $("found").replaceChildren(...shown.map(grouped ? groupNode : rowNode));
  selected();
}

function rowNode(row) {
  const input = make("input");
  input.type = "checkbox";
  set(input, "aria-label", `select ${line(row.id)}`);
  input.addEventListener("change", () => {
    if (input.checked) ticked.add(row.id);
    else ticked.delete(row.id);
    selected();
  });
  const facts = [row.cause, row.age_seconds === null ? "" : `${age(row.age_seconds)} old`, `${count(row.size)} bytes`];
  const text = make("div", "",
    make("p", "", make("span", "id", line(row.id)), " ", make("span", "reason", line(row.reason || "unknown")), " ",
      make("span", "soft", facts.filter(Boolean).map(line).join(" · "))),
    make("p", "error", line(row.error || "")));
  const button = make("button", "", "Open…");
  button.type = "button";
  set(button, "aria-label", `Open ${line(row.id)}`);
  button.addEventListener("click", () => busily(button, () => openLetter(row.id, $("search-outcome"))));
  const node = make("li", "row", input, text, button);
  set(node, "data-tone", row.reason === "crash" ? "bad" : "warn");
  node.input = input;
  node.row = row;
  return node;
}

function groupNode(row) {
  const button = make("button", "", "List");
  button.type = "button";
  set(button, "aria-label", `List ${line(row.group)}`);
  button.addEventListener("click", () => {
    $("field").value = "group";
    $("needle").value = row.group;
    fielded();
    busily($("look"), () => list(false));
  });
  const about = `e.g. ${line(row.example)}` + (row.last ? ` · last ${timeOfDay(Date.parse(row.last))}` : "");
  return make("li", "row of-group", make("span", "number", count(row.count)),
    make("div", "", make("p", "id", line(row.group)), make("p", "error", about)), button);
}

function selected() {
  const rows = [...$("found").children].filter((node) => node.input);
  for (const node of rows) node.input.checked = ticked.has(node.row.id);
  put($("ticked"), ticked.size ? `${ticked.size} selected` : "none selected");
  $("every").checked = rows.length > 0 && ticked.size === new Set(rows.map((node) => node.row.id)).size;
  $("every").indeterminate = ticked.size > 0 && !$("every").checked;
  for (const id of ["requeue-these", "drop-these"]) $(id).disabled = !ticked.size;
}

$("every").addEventListener("change", () => {
  ticked.clear();
  if ($("every").checked) for (const row of shown) ticked.add(row.id);
  selected();
});

function fielded() {
  const field = $("field").value;
  $("needle-label").hidden = !field;
  if (!field) $("needle").value = "";
}

$("field").addEventListener("change", () => {
  fielded();
  if ($("field").value) $("needle").focus();
});
$("needle").addEventListener("keydown", (event) => {
  if (event.key === "Enter") busily($("look"), () => list(false));
});
on("look", () => list(false));
on("group", () => list(true));

/** Requeue or drop what is selected. */
function these(verb, title, text, yes, danger) {
  const ids = [...ticked];
  question({
    title, text, yes, danger,
    act: () => send(`letters/${verb}`, { ids }),
    then: async (said) => {
      for (const id of ids) handled.set(nameOf(id), `${yes === "Requeue" ? "requeued" : "dropped"} from here`);
      await list(false);
      tell($("search-outcome"), said);
      looked();
    },
  });
}

on("requeue-these", () => these("requeue", `Requeue ${several(ticked.size, "dead letter")}?`,
  `They run again from ${line(answer.queue.name)}. Each is removed from ${line(answer.dead_letters.queue)} once the broker has ` +
  "confirmed it.", "Requeue", false));
on("drop-these", () => these("drop", `Drop ${several(ticked.size, "dead letter")} for good?`,
  `They are deleted from ${line(answer.dead_letters.queue)} on ${line(answer.broker || "")} and cannot be recovered.`, "Drop", true));

let opened = null;  // the dead letter in the dialog

function parts(node, pairs) {
  node.querySelector("dl").replaceChildren(...pairs.flatMap(([name, value]) => [make("dt", "", line(name)), make("dd", "", line(value))]));
  node.hidden = !pairs.length;
}

/** The letter as it is in the queue, in a dialog. An error is told in `where`. */
async function openLetter(id, where) {
  tell(where, null);
  const said = await send("letters/show", { id });
  if (!said.ok) {
    tell(where, said);
    return;
  }
  const [letter] = said.letters;
  opened = { letter, where, id };
  put($("letter-id"), line(letter.id));
  const facts = [letter.reason, letter.cause, several(letter.attempts || 0, "try", "tries"),
    letter.crashes ? several(letter.crashes, "crash", "crashes") : "", letter.age_seconds === null ? "" : `${age(letter.age_seconds)} old`,
    letter.host ? `on ${letter.host}` : ""];
  put($("letter-about"), facts.filter(Boolean).map(line).join(" · "));
  put($("letter-error"), lines(letter.error || ""));
  $("letter-error").hidden = !letter.error;
  const many = said.letters.length > 1 ? `${said.letters.length} dead letters have this id; this is the oldest. Requeue and drop act on all of them.` : "";
  tell($("letter-outcome"), many ? { ok: false, because: many } : null);
  const breaks = letter.body.includes("\r") ? "it has carriage returns, which a browser's text field would change" : "";
  const cannot = many ? "One of several cannot be edited." : letter.no_edit || breaks;
  $("letter-body").value = letter.body;
  $("letter-body").readOnly = Boolean(cannot);
  put($("letter-size"), `${count(letter.size)} bytes`);
  put($("letter-note"), cannot ? line(sentence(cannot)) : "Change it here to requeue it with another body; the old one is kept in a header.");
  for (const name of ["evidence", "traceback"]) {
    const node = $(`letter-${name}`);
    node.hidden = !letter[name];
    node.open = name === "traceback" || !letter.traceback;
    put(node.querySelector("pre"), lines(letter[name] || ""));
  }
  parts($("letter-parts"), [...Object.entries(letter.properties), ...Object.entries(letter.headers)]);
  edited();
  $("letter").showModal();
  $("letter-close").focus();
}

const isEdited = () => !$("letter-body").readOnly && $("letter-body").value !== opened.letter.body;

function edited() {
  put($("letter-requeue"), isEdited() ? "Requeue with this body" : "Requeue");
}

$("letter-body").addEventListener("input", edited);
$("letter-close").addEventListener("click", () => $("letter").close());

function away(said, word) {
  handled.set(nameOf(opened.id), `${word} from here`);
  $("letter").close();
  const row = [...$("found").children].find((node) => node.row && node.row.id === opened.id);
  if (row) {
    row.remove();
    shown = shown.filter((each) => each.id !== opened.id);
    ticked.delete(opened.id);
    selected();
  }
  tell(opened.where, said);
  looked();
}

on("letter-requeue", async () => {
  const body = $("letter-body").value;
  const said = await send("letters/requeue", isEdited() ? { id: opened.id, body } : { ids: [opened.id] });
  if (said.ok) away(said, "requeued");
  else tell($("letter-outcome"), said);
});

on("letter-drop", () => question({
  title: "Drop this dead letter for good?",
  text: `${line(opened.letter.id)} is deleted from ${line(answer.dead_letters.queue)} on ${line(answer.broker || "")} and cannot be recovered.`,
  yes: "Drop",
  danger: true,
  act: () => send("letters/drop", { ids: [opened.id] }),
  then: (said) => away(said, "dropped"),
}));

const into = make("button", "", "Look into the queue");
into.type = "button";
into.addEventListener("click", () => {
  $("search").scrollIntoView();
  $("look").focus({ preventScroll: true });
  busily($("look"), () => list(false));
});
$("dead-count").after(into);

$("header").append($("hands"));
$("main").append($("search"));
begin();
}
