// Which parts of an answer's text were drafted. The tokens of an answer, put together, are its text and the marks between its
// parts (reasoning, calls); each piece of text is looked for behind the one before it.

export class Trail {
  constructor() {
    this.text = "";
    this.flags = [];
    this.at = 0;
    this.tokens = 0;
    this.drafted = 0;
    this.decoder = new TextDecoder();
  }

  /** Takes the entries of `logprobs.content`. A character belongs to the token that completes it. */
  add(entries) {
    for (const { bytes, drafted } of entries) {
      const more = this.decoder.decode(Uint8Array.from(bytes), { stream: true });
      this.text += more;
      for (let i = 0; i < more.length; i += 1) this.flags.push(drafted);
      this.tokens += 1;
      this.drafted += drafted ? 1 : 0;
    }
  }

  /** Cuts a piece of the answer into runs: `[text, drafted]` each. */
  cut(piece) {
    const start = this.text.indexOf(piece, this.at);
    if (start < 0) return [[piece, false]];
    this.at = start + piece.length;
    const runs = [];
    for (let i = 0; i < piece.length; i += 1) {
      const flag = this.flags[start + i];
      if (runs.length && runs.at(-1)[1] === flag) runs.at(-1)[0] += piece[i];
      else runs.push([piece[i], flag]);
    }
    return runs;
  }
}
