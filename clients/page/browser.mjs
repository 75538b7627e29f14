// A headless Chromium: the one of this machine, or the one that a package brings.
import { accessSync, constants } from "node:fs";
import path from "node:path";
import puppeteer from "puppeteer-core";

const NAMES = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

function onPath() {
  const places = (process.env.PATH ?? "").split(":").flatMap((place) => NAMES.map((name) => path.join(place, name)));
  return places.find((file) => {
    try {
      accessSync(file, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

export async function launch() {
  let executablePath = onPath();
  executablePath ??= await import("@sparticuz/chromium").then((chromium) => chromium.default.executablePath());
  // The checks run as root in containers; what they open is this machine's own server. No name but it is resolved.
  const args = ["--no-sandbox", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"];
  return puppeteer.launch({ executablePath, headless: "shell", args });
}

if (process.argv[2] === "--probe") {
  const browser = await launch();
  console.log(await browser.version());
  await browser.close();
}
