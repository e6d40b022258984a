package gateway_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"

	"github.com/holdfast-sessions/holdfast/gateway"
)

func Example() {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "hello")
	}))
	defer app.Close()

	key := make([]byte, 32) // in production: the same for every gateway, and kept across restarts
	_, _ = rand.Read(key)   // never fails
	g, err := gateway.New(gateway.Config{
		Upstreams: []gateway.Upstream{{ID: "app1", URL: app.URL}},
		Affinity:  gateway.AffinityCookie,
		Key:       key,
	})
	if err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- g.Run(ctx, l) }()

	res, err := http.Get("http://" + l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	res.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	fmt.Printf("%s, %s\n", body, res.Cookies()[0].Name)
	cancel()
	fmt.Println(<-done)
	// Output:
	// hello, __Host-holdfast-upstream
	// <nil>
}
