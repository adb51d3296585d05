"use strict";
const images = JSON.parse(document.getElementById("images").textContent);
const cards = [...document.querySelectorAll(".card")];
const filters = [...document.querySelectorAll(".filters select")];

// Images are embedded once and put in place when a card is first opened.
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
  let shown = 0;
  for (const card of cards) {
    const fits = filters.every(f => !f.value || card.dataset[f.name].split(f.name === "tools" ? " " : "\n").includes(f.value));
    card.hidden = !fits;
    shown += fits;
  }
  count.textContent = `${shown} of ${cards.length} shown`;
}
for (const filter of filters) filter.addEventListener("change", apply);

// A page without trajectories has no filters.
const count = document.getElementById("count");
if (count) {
  apply();
  const shade = document.getElementById("shade");
  shade.addEventListener("change", () => document.body.classList.toggle("tokens", shade.checked));
  document.body.classList.toggle("tokens", shade.checked);
  document.getElementById("fold").addEventListener("click", event => {
    const open = cards.some(card => !card.hidden && !card.open);
    for (const card of cards) if (!card.hidden) card.open = open;
    event.target.textContent = open ? "close all" : "open all";
  });
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
