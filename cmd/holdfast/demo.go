package main

import (
	"context"
	"os"

	"github.com/holdfast-sessions/holdfast/cmd/holdfast/demo"
	"github.com/holdfast-sessions/holdfast/gateway"
)

type demoCmd struct {
	Listen   string `default:"127.0.0.1:8080" placeholder:"ADDR" help:"Address of the page (${default}). Port 0 takes a free one."`
	Apps     int    `default:"3" help:"Number of application servers, 1 to 9 (${default})."`
	Store    string `placeholder:"URL" help:"Store they share: ${stores}. memory: gives each its own, and shows the problem. Default: files in a temporary directory."`
	Affinity string `enum:"none,cookie" default:"none" help:"Which server a client goes to: none takes them in turn, cookie keeps to one (${default})."`
	Public   bool   `help:"Allow an address that other machines reach. Whoever opens the page can kill the demo's servers."`
}

func (demoCmd) Help() string {
	return `Starts a gateway and three servers as processes of their own, and prints the address of a page on which the
servers can be killed and started while the session stays.

Examples:

  holdfast demo
  holdfast demo --store redis://localhost:6379 --affinity cookie
  holdfast demo --store memory:           # the problem: the login vanishes
  holdfast demo --listen 127.0.0.1:0      # any free port`
}

func (c demoCmd) Run(ctx context.Context) error {
	return demo.Run(ctx, demo.Config{
		Listen: c.Listen, Apps: c.Apps, Store: c.Store, Affinity: gateway.Affinity(c.Affinity), Public: c.Public,
		Out: os.Stdout,
	})
}

type demoAppCmd struct{}

func (demoAppCmd) Run(ctx context.Context) error { return demo.RunApp(ctx, os.Stdin, os.Stdout) }

type demoGatewayCmd struct{}

func (demoGatewayCmd) Run(ctx context.Context) error {
	return demo.RunGateway(ctx, os.Stdin, os.Stdout)
}
