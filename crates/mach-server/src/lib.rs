//! HTTP: routes, server-sent events, limits.
