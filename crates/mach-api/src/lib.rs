//! Wire types, chat templates and their validation; no sockets.
