//! Sessions, the generation loop and sampling.
