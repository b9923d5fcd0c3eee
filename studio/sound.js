/* Sound that an audio element cannot play: a clip that is still being made, and a loop without a gap (Web Audio).
   One of them sounds at a time; player.js draws it, and calls window.tmSound for players that have `live` or `loop`. */
(() => {
  const TICK_MS = 100; // how often to look for new sound
  const AHEAD_S = 2; // how much is handed to the sound card beforehand
  const LEAD_S = 0.06;
  const FIRST_S = 0.4; // sound that must be there before the first note ...
  const REFILL_S = 2; // ... and before it goes on after a gap
  const urlOf = (player) => player.dataset.live ?? player.dataset.loop;
  let begun = null; // the one sound that was begun

  class Sound {
    constructor(player) {
      Object.assign(this, { player, url: urlOf(player), sources: new Set(), paused: true });
    }

    get shown() {
      return this.player.isConnected && urlOf(this.player) === this.url;
    }

    draw() {
      if (this.shown) window.tmShow(this.player, this.position, !this.paused);
    }

    start(buffer, at, from = 0, loop = false) {
      const source = this.context.createBufferSource();
      Object.assign(source, { buffer, loop, onended: () => this.sources.delete(source) });
      source.connect(this.context.destination);
      source.start(at, from);
      this.sources.add(source);
    }

    silence() {
      this.sources.forEach((source) => source.stop());
      this.sources.clear();
    }

    close() {
      clearInterval(this.timer);
      this.silence();
      this.context?.close();
      this.paused = true;
      if (this.shown) window.tmShow(this.player, 0, false);
      if (begun === this) begun = null;
    }
  }

  /* A clip that is still being made. The studio writes the sound so far into a file and says on the card how much there
     is; the part that is new is fetched and put behind the rest. Nothing is fetched until somebody presses play. */
  class Live extends Sound {
    constructor(player) {
      super(player);
      this.rate = Number(player.dataset.rate);
      this.channels = Number(player.dataset.channels);
      this.model = player.closest("[data-model]").dataset.model;
      this.context = new AudioContext({ sampleRate: this.rate });
      this.sound = new Int16Array(8 * this.rate * this.channels); // grows by doubling
      this.have = 0; // samples a channel that were fetched
      this.next = 0; // the sample that is handed over next ...
      this.at = 0; // ... and the context's time at which it sounds
      this.needed = FIRST_S;
      this.waiting = true;
      this.timer = setInterval(() => this.tick(), TICK_MS);
      // The card is redrawn while the model works: what the redraw took away is put back before it can be seen.
      this.redrawn = new MutationObserver(() => this.draw());
      this.redrawn.observe(player, { attributes: true, childList: true, characterData: true, subtree: true });
    }

    get whole() {
      return this.player.dataset.whole === "1" && this.have >= Number(this.player.dataset.made);
    }

    /* Seconds into the clip of what sounds now. */
    get position() {
      const ahead = this.waiting || this.paused ? 0 : Math.max(0, this.at - this.context.currentTime);
      return Math.max(0, this.next / this.rate - ahead);
    }

    tick() {
      if (!this.shown) return this.handOver();
      this.fetch();
      if (!this.paused) this.fill();
      this.draw();
    }

    async fetch() {
      const made = Number(this.player.dataset.made);
      if (this.fetching || made <= this.have) return;
      this.fetching = true;
      const frame = 2 * this.channels;
      try {
        const range = `bytes=${this.have * frame}-${made * frame - 1}`;
        const answer = await fetch(this.url, { headers: { Range: range }, cache: "no-store" });
        if (answer.status === 206) this.append(new Int16Array(await answer.arrayBuffer()));
      } catch (error) {
        console.warn(`The preview could not be fetched: ${error}`); // the next tick tries again
      } finally {
        this.fetching = false;
      }
    }

    append(samples) {
      const start = this.have * this.channels;
      if (start + samples.length > this.sound.length) {
        const grown = new Int16Array(2 * (start + samples.length));
        grown.set(this.sound.subarray(0, start));
        this.sound = grown;
      }
      this.sound.set(samples, start);
      this.have += samples.length / this.channels;
    }

    /* Hand over sound until enough lies ahead; where there is too little, wait instead of stuttering. */
    fill() {
      const now = this.context.currentTime;
      const left = (this.have - this.next) / this.rate;
      if (!this.waiting && this.at <= now) {
        if (left <= 0 && this.whole) return this.pause();
        this.waiting = left <= 0;
        this.needed = REFILL_S;
      }
      if (this.waiting) {
        if (left <= 0 || (left < this.needed && !this.whole)) return;
        this.waiting = false;
        this.at = now + LEAD_S;
      }
      this.at = Math.max(this.at, now);
      while (this.next < this.have && this.at - now < AHEAD_S) this.schedule(Math.min(this.rate, this.have - this.next));
    }

    schedule(count) {
      const buffer = this.context.createBuffer(this.channels, count, this.rate);
      for (let channel = 0; channel < this.channels; channel++) {
        const out = buffer.getChannelData(channel);
        for (let i = 0; i < count; i++) out[i] = this.sound[(this.next + i) * this.channels + channel] / 32768;
      }
      this.start(buffer, this.at);
      this.next += count;
      this.at += count / this.rate;
    }

    play() {
      if (this.whole && this.next >= this.have) this.next = 0;
      this.context.resume();
      this.paused = false;
      this.waiting = true;
      this.tick();
    }

    pause() {
      this.seek(this.position);
      this.paused = true;
      this.draw();
    }

    /* Go on from another place, as far as there is sound. */
    seek(seconds) {
      this.silence();
      this.next = Math.round(Math.max(0, Math.min(seconds * this.rate, this.have)));
      this.waiting = true;
      this.needed = FIRST_S;
    }

    /* The whole clip (or nothing) has taken the preview's place: go on with it in mid-phrase, and be silent then. */
    handOver() {
      clearInterval(this.timer);
      const heir = document.querySelector(`.tm-card[data-model="${CSS.escape(this.model)}"] .tm-player:not([data-live])`);
      const { position: at, paused } = this;
      if (!heir || !at) return this.close();
      if ("loop" in heir.dataset) {
        this.close();
        begun = new Loop(heir, at);
        return paused ? begun.draw() : begun.play();
      }
      this.heir = heir.querySelector("audio");
      this.heir.currentTime = at;
      if (paused) return this.close();
      return this.heir.play()
        .then(() => { this.heir.currentTime = this.position; }, () => {})
        .finally(() => this.close());
    }

    close() {
      super.close();
      this.redrawn.disconnect();
    }
  }

  /* A whole clip that begins anew without a gap: an audio element falls silent for about 10 ms at its end. */
  class Loop extends Sound {
    constructor(player, at = 0) {
      super(player);
      this.from = at; // where it began to sound, in seconds into the clip ...
      this.since = 0; // ... and the context's time then
    }

    get position() {
      const past = this.paused || !this.buffer ? 0 : Math.max(0, this.context.currentTime - this.since);
      return (this.from + past) % Number(this.player.dataset.seconds);
    }

    async play() {
      this.paused = false;
      this.draw();
      try {
        this.buffer ??= await this.load();
      } catch (error) {
        this.player.classList.add("is-broken");
        return this.pause();
      }
      if (this.paused || begun !== this) return undefined;
      this.context.resume();
      this.seek(this.from);
      return this.run();
    }

    /* At the clip's own rate, which stands in byte 24 of a WAV, so that no resampling blurs the seam. */
    async load() {
      const answer = await fetch(this.url);
      if (!answer.ok) throw new Error(`${answer.status}`);
      const bytes = await answer.arrayBuffer();
      this.context = new AudioContext({ sampleRate: new DataView(bytes).getUint32(24, true) });
      return this.context.decodeAudioData(bytes);
    }

    run() {
      if (!this.shown) return this.close();
      this.draw();
      return this.paused ? undefined : requestAnimationFrame(() => this.run());
    }

    pause() {
      this.from = this.position;
      this.paused = true;
      this.silence();
      this.draw();
    }

    seek(seconds) {
      this.from = Math.max(0, seconds) % Number(this.player.dataset.seconds);
      if (this.buffer && !this.paused) {
        this.silence();
        this.since = this.context.currentTime;
        this.start(this.buffer, 0, this.from, true);
      }
      this.draw();
    }
  }

  const of = (player) => (begun && begun.shown && begun.url === urlOf(player) ? begun : null);

  function begin(player) {
    begun?.close();
    begun = "live" in player.dataset ? new Live(player) : new Loop(player);
    return begun;
  }

  window.tmSound = {
    plays: (player) => urlOf(player) !== undefined,
    at: (player) => of(player)?.position ?? 0,
    toggle(player) {
      const sound = of(player) ?? begin(player);
      if (!sound.paused) return sound.pause();
      document.querySelectorAll(".tm-player audio").forEach((audio) => audio.pause());
      return sound.play();
    },
    seek: (player, seconds) => (of(player) ?? begin(player)).seek(seconds),
    /* An audio element begins to sound. */
    yield(audio) {
      if (begun && begun.heir !== audio && !begun.paused) begun.pause();
    },
  };
})();
