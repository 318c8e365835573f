// Renders the formulas that the Markdown extension marks: \(...\) in a line, \[...\] on their own.
for (const element of document.querySelectorAll(".arithmatex")) {
  const text = element.textContent.trim();
  katex.render(text.slice(2, -2), element, { displayMode: text.startsWith("\\[") });
}
