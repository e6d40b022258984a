// Package browsertest proves in headless Chromium what only a browser can: that its cookie jar, its address bar, its
// Referer header and its caches end up as the session's state says. It is a module of its own so that the driver of the
// browser is no dependency of the library, and has tests only.
//
// The requests of a page are held at the server, before and after the calls to the store, and let on in an order that
// the test chooses; nothing sleeps.
package browsertest
