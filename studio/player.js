/* The studio's players: one clip sounds at a time, the picture is the position bar, and what was heard is counted.
   Everything is delegated from the document, because Gradio redraws the markup whenever a card changes. */
(() => {
  const clock = (s) => `${Math.floor(s / 60)}:${String(Math.floor(s % 60)).padStart(2, "0")}`;
  const playerOf = (node) => node && node.closest && node.closest(".tm-player");
  const audioOf = (player) => player.querySelector("audio");
  const lengthOf = (player) => audioOf(player).duration || Number(player.dataset.seconds) || 0;
  const positionOf = (player) => (window.tmSound.plays(player) ? window.tmSound.at(player) : audioOf(player).currentTime);

  function heard(audio) {
    let total = 0;
    for (let i = 0; i < audio.played.length; i++) total += audio.played.end(i) - audio.played.start(i);
    return total;
  }

  /* Show a position. Only what differs is written, so that whoever watches for redrawing comes to rest. */
  function show(player, seconds, playing) {
    const length = lengthOf(player);
    const part = String(length ? Math.min(1, seconds / length) : 0);
    const put = (node, name, value) => node.getAttribute(name) !== value && node.setAttribute(name, value);
    const turn = (name, on) => player.classList.contains(name) !== on && player.classList.toggle(name, on);
    if (player.style.getPropertyValue("--at") !== part) player.style.setProperty("--at", part);
    turn("is-playing", playing);
    turn("is-begun", Number(part) > 0);
    put(player.querySelector(".tm-play"), "aria-label", `${playing ? "Pause" : "Play"} ${player.dataset.label}`);
    const at = player.querySelector(".tm-at");
    if (at.textContent !== clock(seconds)) at.textContent = clock(seconds);
    const bar = player.querySelector(".tm-bar");
    put(bar, "aria-valuenow", seconds.toFixed(1));
    put(bar, "aria-valuetext", `${clock(seconds)} of ${clock(length)}`);
  }

  function draw(player) {
    if (!window.tmSound.plays(player)) show(player, audioOf(player).currentTime, !audioOf(player).paused);
  }

  function loop(player) {
    if (!player.isConnected || !audioOf(player)) return; // Gradio turns nodes into others when it redraws a card
    draw(player);
    ballot(player);
    if (!audioOf(player).paused) requestAnimationFrame(() => loop(player));
  }

  function seek(player, part) {
    const seconds = Math.max(0, Math.min(1, part)) * lengthOf(player);
    if (window.tmSound.plays(player)) return window.tmSound.seek(player, seconds);
    audioOf(player).currentTime = seconds;
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
      if (window.tmSound.plays(player)) window.tmSound.toggle(player);
      else if (audio.paused) audio.play().catch(() => player.classList.add("is-broken"));
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
    const at = positionOf(player);
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
    window.tmSound.yield(event.target);
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
  window.tmShow = show;
})();
