// What a reader of the page would call a fault of it, in words; an empty list where there is none.
(async () => {
  const found = [], article = document.querySelector("article"), root = document.documentElement;
  if (!article) return ["no article"];
  for (const image of document.images) image.loading = "eager";
  await Promise.all([...document.images].map((image) => image.decode().catch(() => null)));
  if (document.querySelector(".math")) await window.MathJax?.startup?.promise;

  const fits = (part) => part.scrollWidth <= part.clientWidth + 1;
  if (!fits(root)) found.push(`${root.scrollWidth} pixels wide in a window of ${root.clientWidth}`);
  const content = document.querySelector(".content"), edge = content.getBoundingClientRect().right + 1;
  if (!fits(content)) found.push(`the text is ${content.scrollWidth} pixels wide in a column of ${content.clientWidth}`);
  const scrolls = (part) => part !== article && (/auto|scroll/.test(getComputedStyle(part).overflowX) || scrolls(part.parentElement));
  for (const part of article.querySelectorAll("*")) {
    if (part.closest("mjx-assistive-mml, svg, .headerlink")) continue;
    const hides = /hidden|clip/.test(getComputedStyle(part).overflowX) && !fits(part);
    const sticksOut = part.getBoundingClientRect().right > edge && !scrolls(part);
    if (hides || sticksOut) {
      found.push(`cut off: <${part.localName}> ${part.textContent.trim().slice(0, 60)}`);
      break;
    }
  }
  const texts = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode.data, isCode = texts.currentNode.parentElement.closest("pre, code, script, style, mjx-container");
    if (!isCode && /\$\$|\\[([]|\\[a-zA-Z]{2,}/.test(text)) found.push(`TeX: ${text.trim().slice(0, 60)}`);
  }
  for (const formula of article.querySelectorAll(".math")) {
    if (!formula.querySelector("mjx-container")) found.push(`formula that is not set: ${formula.textContent.slice(0, 60)}`);
  }
  for (const error of article.querySelectorAll("[data-mml-node=merror]")) found.push(`formula with an error: ${error.textContent}`);
  for (const image of document.images) if (!image.naturalWidth) found.push(`missing picture: ${image.getAttribute("src")}`);
  return found;
})()
