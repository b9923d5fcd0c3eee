for (const player of document.querySelectorAll("audio")) {
  const figure = player.previousElementSibling, line = figure.querySelector("i");
  const seconds = Number(player.dataset.seconds);
  player.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== player) other.pause();
    figure.classList.add("on");
    requestAnimationFrame(function move() {
      line.style.left = `${100 * player.currentTime / seconds}%`;
      if (!player.paused) requestAnimationFrame(move);
    });
  });
  player.addEventListener("seeked", () => { line.style.left = `${100 * player.currentTime / seconds}%`; });
  figure.addEventListener("click", (event) => {
    const box = figure.getBoundingClientRect(), place = (event.clientX - box.left) / box.width;
    player.play().then(() => { player.currentTime = place * seconds; }, () => {});
  });
}
