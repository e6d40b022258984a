package browsertest

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/holdfast-sessions/holdfast"
)

// back is the back button.
func back(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
	h, err := cdp.Call(ctx, t, page.GetNavigationHistory, cdp.Empty{})
	if err != nil {
		return chromedp.Void{}, err
	}
	e := h.Entries[h.CurrentIndex-1]
	_, err = cdp.Call(ctx, t, page.NavigateToHistoryEntry, page.NavigateToHistoryEntryParams{EntryID: e.ID})
	return chromedp.Void{}, err
}

// TestBackAfterLogout says what Chromium's back button shows after logout. A private page is never shown from the HTTP
// cache: "Vary: Cookie" has the server asked again, now that the cookie is gone. But a page that Chromium keeps alive
// (back/forward cache) is shown as it was, whatever Clear-Site-Data says: only "no-store" prevents that, which the
// application sets on the pages that need it.
func TestBackAfterLogout(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name          string
		cacheControl  string // of the private page, as the application sets it; "": not at all
		unload        bool   // the page has a handler that keeps it out of the back/forward cache
		clearSiteData bool   // Config.ClearSiteData
		clear         string // Clear-Site-Data, as the application sets it at logout
		shows         string // where the private page comes from, "" if it is not shown
	}{
		{name: "default", shows: "kept alive"},
		{name: "default, not kept alive", unload: true},
		{name: "no-cache", cacheControl: "no-cache", shows: "kept alive"},
		{name: "no-store", cacheControl: "no-store"},
		{name: "no-store, not kept alive", cacheControl: "no-store", unload: true},
		{name: "Config.ClearSiteData", clearSiteData: true, shows: "kept alive"},
		{name: "Config.ClearSiteData, not kept alive", clearSiteData: true, unload: true},
		{name: "Clear-Site-Data cache", clear: `"cache"`, shows: "kept alive"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var served atomic.Int32
			f := startFleet(t, setup{
				config: holdfast.Config{ClearSiteData: test.clearSiteData},
				routes: func(m *holdfast.Manager, mux *http.ServeMux) {
					a := application{m}
					mux.HandleFunc("GET /private", a.with(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
						served.Add(1)
						if test.cacheControl != "" {
							w.Header().Set("Cache-Control", test.cacheControl)
						}
						w.Header().Set("Content-Type", "text/html; charset=utf-8")
						if test.unload {
							fmt.Fprint(w, `<script>addEventListener("unload", () => {})</script>`)
						}
						_, err := fmt.Fprintf(w, `<link rel="icon" href="data:,"><title>private</title><p>user %s`+
							`<form method="post" action="/leave"><button id="leave">log out</button></form>`+
							`<script>addEventListener("pageshow", e => report({name: e.persisted ? "kept alive" : "loaded", body: document.body.innerText}))</script>`, s.User())
						return err
					}))
					mux.HandleFunc("POST /leave", a.with(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
						if err := s.Logout(r.Context()); err != nil {
							return err
						}
						if test.clear != "" {
							w.Header().Set("Clear-Site-Data", test.clear)
						}
						http.Redirect(w, r, "/", http.StatusSeeOther)
						return nil
					}))
				},
			})
			b := newTab(t)
			login(b, f.base, "anna")
			shown := func() answer { // as the page itself reports
				a, err := b.await()
				if err != nil {
					t.Fatal(err)
				}
				return a
			}
			b.open(f.base + "/private")
			if a := shown(); !strings.Contains(a.Body, "user anna") {
				t.Fatalf("private page shows %q", a.Body)
			}
			b.click("leave")
			b.do(back)
			again := shown()
			shows := ""
			if strings.Contains(again.Body, "user anna") {
				shows = again.Name
			}
			if shows != test.shows {
				t.Errorf("the back button shows the private page %q, want %q", shows, test.shows)
			}
			if again := served.Load() > 1; again == (shows != "") {
				t.Errorf("the server was asked again: %v, and the page is shown: %v", again, shows != "")
			}
		})
	}
}
