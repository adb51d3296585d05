"use strict";
const images = JSON.parse(document.getElementById("images").textContent);
const cards = [...document.querySelectorAll(".card")];
const filters = [...document.querySelectorAll(".filters select")];
const search = document.getElementById("search");
const count = document.getElementById("count");

// Images are embedded once and put in place when a question is first opened.
function fill(card) {
  for (const img of card.querySelectorAll("img[data-image]")) {
    img.src = images[img.dataset.image];
    img.removeAttribute("data-image");
  }
}
for (const card of cards) {
  card.addEventListener("toggle", () => card.open && fill(card));
  if (card.open) fill(card);
}

function apply() {
  const words = search.value.toLowerCase();
  let shown = 0;
  for (const card of cards) {
    const fits = filters.every(f => !f.value || card.dataset[f.name] === f.value)
      && (!words || card.querySelector("summary").textContent.toLowerCase().includes(words));
    card.hidden = !fits;
    shown += fits;
  }
  count.textContent = `${shown} of ${cards.length} shown`;
}
if (count) {
  for (const filter of filters) filter.addEventListener("change", apply);
  search.addEventListener("input", apply);
  apply();
}

const root = document.documentElement;
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

const dialog = document.querySelector("dialog");
document.addEventListener("click", event => {
  if (event.target.matches(".shot img")) {
    dialog.querySelector("img").src = event.target.src;
    dialog.showModal();
  } else if (dialog.open) dialog.close();
});
