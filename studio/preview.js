/* Hearing a clip while it is made. The studio writes the sound so far into a file and says on the card how much there is;
   while a preview plays, the part that is new is fetched and put behind the rest without a gap (Web Audio). When the
   whole clip takes the preview's place it takes over in mid-phrase. Nothing is fetched until somebody presses play. */
(() => {
  const TICK_MS = 100; // how often to look for new sound
  const AHEAD_S = 2; // how much is handed to the sound card beforehand
  const LEAD_S = 0.06;
  const FIRST_S = 0.4; // sound that must be there before the first note, and before it goes on after a gap
  const REFILL_S = 2;
  let live = null; // the one preview that was begun

  class Live {
    constructor(player) {
      const { live: url, rate, channels } = player.dataset;
      Object.assign(this, { player, url, rate: Number(rate), channels: Number(channels) });
      this.model = player.closest("[data-model]").dataset.model;
      this.context = new AudioContext({ sampleRate: this.rate });
      this.sound = new Int16Array(8 * this.rate * this.channels); // grows by doubling
      this.have = 0; // samples a channel that were fetched
      this.next = 0; // the sample that is handed over next ...
      this.at = 0; // ... and the context's time at which it sounds
      this.sources = new Set();
      this.needed = FIRST_S;
      this.paused = this.waiting = true;
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
      if (!this.player.isConnected || this.player.dataset.live !== this.url) return this.handOver();
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
      const source = this.context.createBufferSource();
      source.buffer = buffer;
      source.connect(this.context.destination);
      source.onended = () => this.sources.delete(source);
      source.start(this.at);
      this.sources.add(source);
      this.next += count;
      this.at += count / this.rate;
    }

    play() {
      document.querySelectorAll(".tm-player audio").forEach((audio) => audio.pause());
      if (this.whole && this.next >= this.have) this.next = 0;
      this.context.resume();
      this.paused = false;
      this.waiting = true;
      this.tick();
    }

    pause() {
      this.cut(this.position);
      this.paused = true;
      this.draw();
    }

    /* Stop what sounds and go on from another place, as far as there is sound. */
    cut(seconds) {
      this.sources.forEach((source) => source.stop());
      this.sources.clear();
      this.next = Math.round(Math.max(0, Math.min(seconds * this.rate, this.have)));
      this.waiting = true;
      this.needed = FIRST_S;
    }

    draw() {
      if (this.player.dataset.live !== this.url) return;
      window.tmShow(this.player, this.position, !this.paused);
    }

    /* The whole clip (or nothing) has taken the preview's place: go on with it, and be silent once it sounds. */
    handOver() {
      clearInterval(this.timer);
      const card = `.tm-card[data-model="${CSS.escape(this.model)}"]`;
      const audio = document.querySelector(`${card} .tm-player:not([data-live]) audio[src]`);
      if (!audio || !this.position) return this.close();
      audio.currentTime = this.position;
      if (this.paused) return this.close();
      this.heir = audio;
      audio.play().then(() => { audio.currentTime = this.position; }, () => {}).finally(() => this.close());
    }

    close() {
      clearInterval(this.timer);
      this.redrawn.disconnect();
      this.sources.forEach((source) => source.stop());
      this.context.close();
      if (live === this) live = null;
    }
  }

  const of = (player) => (live && live.url === player.dataset.live ? live : null);

  window.tmLive = {
    toggle(player) {
      if (!of(player)) {
        live?.close();
        live = new Live(player);
      }
      if (live.paused) live.play();
      else live.pause();
    },
    at: (player) => of(player)?.position ?? 0,
    seek(player, seconds) {
      of(player)?.cut(seconds);
      of(player)?.tick();
    },
    /* Something else begins to sound. */
    yield(audio) {
      if (live && live.heir !== audio && !live.paused) live.pause();
    },
  };
})();
