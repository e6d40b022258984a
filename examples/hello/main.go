// Command hello counts the visits of each visitor. Sessions are in this process's memory, which is enough for one
// server; with redisstore.Open or filestore.Open in the place of memory.New, any number of servers share them.
//
//	go run ./examples/hello
package main

import (
	"fmt"
	"log"
	"net/http"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/store/memory"
)

var visits = holdfast.NewField[int]("visits")

func main() {
	store := memory.New()
	defer store.Close()
	sessions, err := holdfast.New(store, holdfast.Config{
		Cookie: holdfast.Cookie{AllowPlainLocalhost: true}, // this is plain http, for development only
	})
	if err != nil {
		log.Fatal(err)
	}
	log.Println("http://localhost:8080")
	log.Fatal(http.ListenAndServe("localhost:8080", sessions.Handler(hello(sessions))))
}

func hello(sessions *holdfast.Manager) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		s, err := sessions.Get(r)
		if err != nil {
			sessions.Error(w, r, err)
			return
		}
		// Update, not Get and Set: of two visits at once, both count.
		n, err := visits.Update(r.Context(), s, func(n int) (int, error) { return n + 1, nil })
		if err != nil {
			sessions.Error(w, r, err)
			return
		}
		fmt.Fprintf(w, "Hello, visit %d.\n", n)
	})
	return mux
}
