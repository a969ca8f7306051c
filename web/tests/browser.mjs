// A browser on the system's Chromium, computing on its software adapter, and pages in it.

import { existsSync } from "node:fs";
import { chromium } from "playwright-core";
import { serve } from "../serve.mjs";

const CANDIDATES = ["/usr/bin/chromium", "/usr/bin/google-chrome", "/usr/bin/chromium-browser"];

const FLAGS = [
  "--headless=new",
  "--no-sandbox",
  "--no-first-run",
  // SwiftShader for WebGPU and, where a canvas asks for it, for drawing.
  "--enable-unsafe-webgpu",
  "--enable-features=Vulkan",
  "--use-vulkan=swiftshader",
  "--use-angle=swiftshader",
  // Nothing that goes out on its own.
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-quic",
  "--disable-sync",
];

/** Opens a server and a browser for a file of tests. */
export async function open(root) {
  const executablePath = process.env.BROWSER || CANDIDATES.find(existsSync);
  if (!executablePath) throw new Error("there is no Chromium or Chrome; name one in BROWSER");
  const server = await serve(0, root);
  const browser = await chromium.launch({ executablePath, args: FLAGS });
  return {
    url: server.url,
    browser,
    /** A page and what it writes to the console as an error. */
    async page(path, options) {
      const page = await browser.newPage(options);
      const errors = [];
      page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
      page.on("pageerror", (error) => errors.push(String(error)));
      await page.goto(server.url + path);
      return { page, errors };
    },
    async close() {
      await browser.close();
      await server.close();
    },
  };
}
