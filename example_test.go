package holdfast_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/memory"
)

// browse serves h and fetches paths from it as a browser with one cookie jar would.
func browse(h http.Handler, paths ...string) {
	server := httptest.NewTLSServer(h)
	defer server.Close()
	client := server.Client()
	client.Jar, _ = cookiejar.New(nil)
	for _, path := range paths {
		res, err := client.Get(server.URL + path)
		if err != nil {
			fmt.Println(err)
			return
		}
		body, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		fmt.Println(res.StatusCode, string(body))
	}
}

// A counter of visits, in a session that all servers with the same store share.
func Example() {
	store := memory.New() // or redisstore.Open, filestore.Open
	defer store.Close()
	sessions, err := holdfast.New(store, holdfast.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	visits := holdfast.NewField[int]("visits")

	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s, err := sessions.Get(r)
		if err != nil {
			sessions.Error(w, r, err)
			return
		}
		n, err := visits.Update(r.Context(), s, func(n int) (int, error) { return n + 1, nil })
		if err != nil {
			sessions.Error(w, r, err)
			return
		}
		fmt.Fprintf(w, "visit %d", n)
	})
	browse(sessions.Handler(mux), "/", "/", "/")
	// Output:
	// 200 visit 1
	// 200 visit 2
	// 200 visit 3
}

// A visitor who was never seen has a session too: it is empty, and stored when its first field is set.
func ExampleManager_Get() {
	store := memory.New()
	defer store.Close()
	sessions, _ := holdfast.New(store, holdfast.Config{})
	theme := holdfast.NewField[string]("theme")

	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s, err := sessions.Get(r)
		if err != nil { // the store cannot answer: not a new visitor
			sessions.Error(w, r, err)
			return
		}
		t, err := theme.Get(s)
		if err != nil {
			sessions.Error(w, r, err)
			return
		}
		fmt.Fprintf(w, "theme %q", t)
	})
	mux.HandleFunc("/dark", func(w http.ResponseWriter, r *http.Request) {
		s, err := sessions.Get(r)
		if err == nil {
			err = theme.Set(s, "dark")
		}
		if err != nil {
			sessions.Error(w, r, err)
			return
		}
		fmt.Fprint(w, "done")
	})
	browse(sessions.Handler(mux), "/", "/dark", "/")
	// Output:
	// 200 theme ""
	// 200 done
	// 200 theme "dark"
}

// Two tabs that put something into the cart at once both succeed: the function runs again on the newer cart.
func ExampleField_Update() {
	store := memory.New()
	defer store.Close()
	sessions, _ := holdfast.New(store, holdfast.Config{})
	cart := holdfast.NewField[[]string]("cart")

	mux := http.NewServeMux()
	mux.HandleFunc("/add/{item}", func(w http.ResponseWriter, r *http.Request) {
		s, err := sessions.Get(r)
		if err != nil {
			sessions.Error(w, r, err)
			return
		}
		items, err := cart.Update(r.Context(), s, func(items []string) ([]string, error) {
			return append(items, r.PathValue("item")), nil
		})
		if err != nil {
			sessions.Error(w, r, err)
			return
		}
		fmt.Fprint(w, items)
	})
	browse(sessions.Handler(mux), "/add/tea", "/add/milk")
	// Output:
	// 200 [tea]
	// 200 [tea milk]
}

// After the application has checked who it is, Login ties the session to the user and gives it a new token.
// A session of another system becomes a record, whose fields are what handlers read.
func ExampleField_Encode() {
	ctx, store := context.Background(), memory.New()
	defer store.Close()
	sessions, _ := holdfast.New(store, holdfast.Config{})
	name := holdfast.NewField[string]("name")

	value, err := name.Encode("Ada")
	if err != nil {
		fmt.Println(err)
		return
	}
	now := time.Now()
	id := driver.ID{1} // in truth that of the client's token: see TokenID
	err = store.Save(ctx, id, driver.Record{
		Created: now, Seen: now, Expires: now.Add(time.Hour), Revision: driver.NewRevision(0),
		Fields: driver.Fields{}.With(driver.Change{Name: name.Name(), Value: value}),
	}, 0)
	if err != nil {
		fmt.Println(err)
		return
	}

	s, err := sessions.Open(ctx, id)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(name.Get(s))
	// Output: Ada <nil>
}

func ExampleSession_Login() {
	store := memory.New()
	defer store.Close()
	sessions, _ := holdfast.New(store, holdfast.Config{})

	mux := http.NewServeMux()
	handle := func(path string, f func(*http.Request, *holdfast.Session) error) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			s, err := sessions.Get(r)
			if err == nil {
				err = f(r, s)
			}
			if err != nil {
				sessions.Error(w, r, err)
				return
			}
			fmt.Fprintf(w, "user %q", s.User())
		})
	}
	handle("/login", func(r *http.Request, s *holdfast.Session) error { return s.Login(r.Context(), "ada") })
	handle("/logout", func(r *http.Request, s *holdfast.Session) error { return s.Logout(r.Context()) })
	handle("/", func(*http.Request, *holdfast.Session) error { return nil })
	browse(sessions.Handler(mux), "/", "/login", "/", "/logout", "/")
	// Output:
	// 200 user ""
	// 200 user "ada"
	// 200 user "ada"
	// 200 user ""
	// 200 user ""
}
