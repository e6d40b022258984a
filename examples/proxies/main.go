// Command proxies is an application server behind nginx or HAProxy, whose configurations are beside it. Several of them
// share their sessions in Redis, so it does not matter to a client which one answers:
//
//	go run ./examples/proxies -listen 127.0.0.1:3001
//	go run ./examples/proxies -listen 127.0.0.1:3002
//
// With -header X-Session-Id it takes the token from that header, where the proxy puts it (nginx-session-header.conf).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/redisstore"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:3001", "address to listen on: loopback or a private network, for the proxy alone")
	redis := flag.String("redis", "redis://127.0.0.1:6379", "where the sessions are")
	header := flag.String("header", "", "header in which the proxy passes the token; empty: the cookie")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *listen, *redis, *header); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, listen, redis, header string) error {
	store, err := redisstore.Open(ctx, redis)
	if err != nil {
		return err
	}
	defer store.Close()
	h, err := handler(store, header, listen)
	if err != nil {
		return err
	}
	server := &http.Server{Addr: listen, Handler: h, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

var visits = holdfast.NewField[int]("visits")

// handler is the application. Its pages say who answered them.
func handler(store driver.Store, header, name string) (http.Handler, error) {
	sessions, err := holdfast.New(store, holdfast.Config{
		// The cookie is then the proxy's. It drops the cookie where an answer has Clear-Site-Data: after a logout.
		Header: header, DisableCookie: header != "", ClearSiteData: header != "",
	})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	handle := func(pattern string, f func(http.ResponseWriter, *http.Request, *holdfast.Session) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			s, err := sessions.Get(r)
			if err == nil {
				err = f(w, r, s)
			}
			if err != nil {
				sessions.Error(w, r, err)
			}
		})
	}
	handle("GET /{$}", func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
		n, err := visits.Update(r.Context(), s, func(n int) (int, error) { return n + 1, nil })
		if err == nil {
			_, err = fmt.Fprintf(w, "visit %d of %q at %s\n", n, s.User(), name)
		}
		return err
	})
	handle("POST /login", func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
		return s.Login(r.Context(), r.PostFormValue("user")) // check a password, or better a passkey, before
	})
	handle("POST /logout", func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) error {
		return s.Logout(r.Context())
	})
	// Forms that other sites send in a user's name are refused. It compares Origin with Host, so the proxy must pass Host on.
	return http.NewCrossOriginProtection().Handler(sessions.Handler(mux)), nil
}
