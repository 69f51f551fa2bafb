// Counts the words of the guestbook whenever it changes, and writes the number beside it.
const fs = require("fs");

const entries = process.env.GUESTBOOK || "entries.txt";
let last = null;

function count() {
  let text = "";
  try {
    text = fs.readFileSync(entries, "utf8");
  } catch (e) {
    if (e.code !== "ENOENT") throw e;
  }
  if (text === last) return;
  last = text;
  const words = text.split(/\s+/).filter(Boolean).length;
  fs.writeFileSync(entries + ".words.new", words + "\n");
  fs.renameSync(entries + ".words.new", entries + ".words");
  console.log(`worker: ${words} words`);
}

count();
setInterval(count, 200);
process.on("SIGTERM", () => process.exit(0));
