//! Number formats of weights: packing, unpacking, tile layout, scalar reference decode.
