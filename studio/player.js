/* The studio's players: one clip sounds at a time, the picture is the position bar, and what was heard is counted.
   Everything is delegated from the document, because Gradio redraws the markup whenever a card changes. */
(() => {
  const clock = (s) => `${Math.floor(s / 60)}:${String(Math.floor(s % 60)).padStart(2, "0")}`;
  const playerOf = (node) => node && node.closest && node.closest(".tm-player");
  const audioOf = (player) => player.querySelector("audio");
  const lengthOf = (player) => audioOf(player).duration || Number(player.dataset.seconds) || 0;

  function heard(audio) {
    let total = 0;
    for (let i = 0; i < audio.played.length; i++) total += audio.played.end(i) - audio.played.start(i);
    return total;
  }

  function draw(player) {
    const audio = audioOf(player);
    const length = lengthOf(player);
    const part = length ? Math.min(1, audio.currentTime / length) : 0;
    player.style.setProperty("--at", part);
    player.classList.toggle("is-playing", !audio.paused);
    player.classList.toggle("is-begun", part > 0);
    const button = player.querySelector(".tm-play");
    button.setAttribute("aria-label", `${audio.paused ? "Play" : "Pause"} ${player.dataset.label}`);
    player.querySelector(".tm-at").textContent = clock(audio.currentTime);
    const bar = player.querySelector(".tm-bar");
    bar.setAttribute("aria-valuenow", audio.currentTime.toFixed(1));
    bar.setAttribute("aria-valuetext", `${clock(audio.currentTime)} of ${clock(length)}`);
  }

  function loop(player) {
    if (!player.isConnected) return;
    draw(player);
    ballot(player);
    if (!audioOf(player).paused) requestAnimationFrame(() => loop(player));
  }

  function seek(player, part) {
    const audio = audioOf(player);
    audio.currentTime = Math.max(0, Math.min(1, part)) * lengthOf(player);
    draw(player);
  }

  function listened(trial) {
    const out = {};
    trial.querySelectorAll(".tm-player").forEach((player) => (out[player.dataset.side] = heard(audioOf(player))));
    return out;
  }

  /* A blind pair: the vote opens when enough of both clips was heard. */
  function ballot(node) {
    const trial = node.closest(".tm-trial");
    if (!trial || !trial.dataset.needed) return;
    const needed = Number(trial.dataset.needed);
    const times = listened(trial);
    const missing = Object.entries(times).filter(([, seconds]) => seconds < needed);
    trial.querySelectorAll(".tm-player").forEach((player) => {
      player.style.setProperty("--heard", Math.min(1, times[player.dataset.side] / needed));
    });
    trial.querySelectorAll("[data-vote]").forEach((button) => (button.disabled = missing.length > 0));
    const hint = trial.querySelector(".tm-hint");
    if (hint) {
      const words = missing.map(([side, s]) => `${Math.ceil(needed - s)} s more of ${side.toUpperCase()}`).join(" and ");
      hint.textContent = missing.length ? `Listen to ${words} to open the vote.` : "Which one do you prefer?";
    }
  }

  document.addEventListener("click", (event) => {
    const player = playerOf(event.target);
    if (!player) return;
    if (event.target.closest(".tm-play")) {
      const audio = audioOf(player);
      if (audio.paused) audio.play().catch(() => player.classList.add("is-broken"));
      else audio.pause();
    }
  });

  document.addEventListener("pointerdown", (event) => {
    const bar = event.target.closest && event.target.closest(".tm-bar");
    if (!bar) return;
    const player = playerOf(bar);
    const move = (e) => {
      const box = bar.getBoundingClientRect();
      seek(player, (e.clientX - box.left) / box.width);
    };
    move(event);
    const up = () => {
      document.removeEventListener("pointermove", move);
      document.removeEventListener("pointerup", up);
      document.removeEventListener("pointercancel", up);
    };
    document.addEventListener("pointermove", move);
    document.addEventListener("pointerup", up);
    document.addEventListener("pointercancel", up);
  });

  document.addEventListener("keydown", (event) => {
    const bar = event.target.closest && event.target.closest(".tm-bar");
    if (!bar) return;
    const player = playerOf(bar);
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    const at = audioOf(player).currentTime;
    if (step) seek(player, (at + step) / lengthOf(player));
    else if (event.key === "Home") seek(player, 0);
    else if (event.key === " " || event.key === "Enter") player.querySelector(".tm-play").click();
    else return;
    event.preventDefault();
  });

  /* Media events do not bubble, but they can be caught on their way down. */
  document.addEventListener("play", (event) => {
    const player = playerOf(event.target);
    if (!player) return;
    document.querySelectorAll(".tm-player audio").forEach((other) => other !== event.target && other.pause());
    loop(player);
  }, true);
  ["pause", "ended", "timeupdate", "loadedmetadata"].forEach((name) =>
    document.addEventListener(name, (event) => {
      const player = playerOf(event.target);
      if (player) { draw(player); ballot(player); }
    }, true));
  document.addEventListener("error", (event) => {
    const player = playerOf(event.target);
    if (player) player.classList.add("is-broken");
  }, true);

  window.tmListened = listened;
})();
