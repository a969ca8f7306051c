// The page as a whole: the device, the tabs, and what to say when there is no device.

import init, * as attention from "../pkg/wgpu_attention.js";
import { startBench } from "./bench.js";
import { startExplain } from "./explain.js";
import { startSee } from "./see.js";

const $ = (selector) => document.querySelector(selector);

/** What the views share: the module, the device of the moment, and the shaders that ran. */
const app = {
  attention,
  context: null,
  /** The composed text of the plan that a family last ran, with its kernel's label. */
  shaders: new Map(),
  notice,
};

function notice(text, restart = false) {
  const box = $("#notice");
  box.hidden = !text;
  box.querySelector("p").textContent = text ?? "";
  box.querySelector("button").hidden = !restart;
}

const MISSING =
  "This browser offers no WebGPU here. Current Chrome, Edge, Safari and Firefox have it on most systems; " +
  "the page must come from https or localhost. In Chrome on Linux, chrome://flags/#enable-unsafe-webgpu turns it on, " +
  "and chrome://gpu tells what stands in the way.";

/** Opens a device and keeps an eye on it. */
async function connect() {
  notice(null);
  $("#device").textContent = "Looking for a device …";
  try {
    app.context = await attention.Context.create();
  } catch (error) {
    app.context = null;
    $("#device").textContent = "No device";
    notice(error.name === "NoDeviceError" ? `${MISSING} (${error.message})` : error.message, true);
    document.body.dataset.state = "missing";
    return;
  }
  const { context } = app;
  const features = context.features.join(", ") || "no optional features";
  $("#device").textContent = `${context.adapter} · ${features}${context.isCpu ? " · a CPU: expect seconds" : ""}`;
  document.body.dataset.state = "ready";
  context.device.lost.then(({ message }) => {
    if (app.context !== context) return;
    app.context = null;
    document.body.dataset.state = "lost";
    $("#device").textContent = "The device is gone";
    document.dispatchEvent(new Event("device-lost"));
    notice(`The device was lost: ${message || "the browser gives no reason"}. Nothing else is: restart to go on.`, true);
  });
  document.dispatchEvent(new Event("device-ready"));
}

function startTabs() {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const select = (tab) => {
    for (const other of tabs) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", String(chosen));
      other.tabIndex = chosen ? 0 : -1;
      document.getElementById(other.getAttribute("aria-controls")).hidden = !chosen;
    }
    document.dispatchEvent(new CustomEvent("view", { detail: tab.getAttribute("aria-controls") }));
    history.replaceState(null, "", `#${tab.getAttribute("aria-controls")}`);
  };
  for (const [index, tab] of tabs.entries()) {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", ({ key }) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, Home: -index, End: tabs.length - 1 - index }[key];
      if (step === undefined) return;
      const next = tabs[(index + step + tabs.length) % tabs.length];
      next.focus();
      select(next);
    });
  }
  const wanted = tabs.find((tab) => `#${tab.getAttribute("aria-controls")}` === location.hash);
  return () => select(wanted ?? tabs[0]);
}

$("#notice button").addEventListener("click", connect);
const showFirst = startTabs();
startBench(app);
startSee(app);
startExplain(app);
await init();
await connect();
showFirst();
