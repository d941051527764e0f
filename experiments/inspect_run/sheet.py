"""How the page looks: like a paper's, in light and dark, on paper too."""

CSS = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #595959; --line: #d8d8d8; --ground: #ffffff; --box: #f6f6f4;
  --link: #0b57a4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e6e1; --soft: #aaa69e; --line: #3f3f3d; --ground: #191918; --box: #232322; --link: #86b9ee; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 66rem; background: var(--ground); color: var(--ink);
  font: 1.0625rem/1.55 Charter, "Bitstream Charter", "Source Serif 4", Cambria, Georgia, serif; }
h1 { margin: 0 0 1rem; font-size: 2rem; line-height: 1.2; font-weight: 600; overflow-wrap: anywhere; }
h2 { margin: 3rem 0 .75rem; padding-top: 1.25rem; border-top: 1px solid var(--line); font-size: 1.4rem; font-weight: 600; }
p { margin: .6rem 0; max-width: 46rem; overflow-wrap: anywhere; }
a { color: var(--link); text-decoration-thickness: 1px; text-underline-offset: .15em; }
dl { margin: 0; padding: .75rem 1rem; background: var(--box); border-radius: 6px; font-size: .95rem; }
dl div { display: grid; grid-template-columns: 7.5rem 1fr; gap: 1rem; padding: .1rem 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
nav ol { margin: 1.25rem 0 0; padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.5rem;
  counter-reset: part; font-size: .95rem; }
nav li { counter-increment: part; }
nav li::before { content: counter(part) ". "; color: var(--soft); }
.box { margin: 1rem 0; overflow-x: auto; }
.long { max-height: 26rem; overflow-y: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-size: .9rem; line-height: 1.35; font-variant-numeric: tabular-nums lining-nums; }
.long table { min-width: 100%; }
th, td { padding: .3rem .9rem .3rem .6rem; text-align: left; vertical-align: top; }
th { position: sticky; top: 0; background: var(--ground); color: var(--soft); font-weight: 600;
  box-shadow: inset 0 -1px var(--line); }
tbody tr + tr td { border-top: 1px solid color-mix(in srgb, var(--line) 55%, transparent); }
.number { text-align: right; white-space: nowrap; }
figure { margin: 2rem 0; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; }
figcaption { margin-top: .5rem; max-width: 46rem; font-size: .95rem; line-height: 1.45; }
figcaption i { color: var(--soft); font-size: .85rem; white-space: nowrap; }
@media (prefers-color-scheme: dark) { img { padding: .5rem; border-radius: 6px; } }
@media (max-width: 40rem) { dl div { grid-template-columns: 1fr; gap: 0; padding: .25rem 0; } }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  .long { max-height: none; overflow: visible; border: 0; }
  th { position: static; }
  h2, figcaption { break-after: auto; }
  h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  img { max-height: 22cm; width: auto; }
}
"""
