package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"reflect"
	"syscall"
	"time"

	"github.com/holdfast-sessions/holdfast/internal/configfile"
)

// configPoll is how often the configuration file is looked at.
const configPoll = 500 * time.Millisecond

// reloadUntil calls reload on SIGHUP, and when the content of the file has changed from known and is the same at two looks
// (an editor may be writing it), until ctx ends. Without a file SIGHUP ends the program, as a terminal that closes expects.
func reloadUntil(ctx context.Context, hup <-chan os.Signal, file string, known []byte, logger *slog.Logger, reload func(content []byte) error) error {
	var look <-chan time.Time
	if file != "" {
		tick := time.NewTicker(configPoll)
		defer tick.Stop()
		look = tick.C
	}
	seen := known
	for {
		asked := false
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			if file == "" {
				return errHangup
			}
			asked = true
		case <-look:
		}
		now, err := os.ReadFile(file)
		steady := err == nil && bytes.Equal(now, seen) // a file that is being replaced is missing for a moment
		if seen = now; !asked && (!steady || bytes.Equal(now, known)) {
			continue
		}
		if err == nil {
			known = now
		}
		notifyReloading()
		if err == nil {
			err = reload(now)
		}
		if err != nil {
			logger.Error("configuration not usable, the running one stays", "err", oneLine(err))
		}
		notifyReady()
	}
}

// errHangup ends a gateway whose terminal closed.
var errHangup = errors.New("terminal closed (SIGHUP); with --config that reads the file again")

// watchHangups returns the channel for reloadUntil. From then on SIGHUP does not end the program.
func watchHangups() (hup <-chan os.Signal, stop func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	return c, func() { signal.Stop(c) }
}

// needRestart are settings that a running gateway cannot change, besides those that gateway.Reload refuses.
var needRestart = []string{"gateway.listen", "gateway.access_log.path", "gateway.access_log.format", "admin.listen", "log.format"}

// unchanged reports what of now is not as it was and would need a restart.
func (s *settings) unchanged(now *settings, layers *configfile.Layers) error {
	var errs []error
	for _, path := range needRestart {
		if !reflect.DeepEqual(configfile.Value(s, path), configfile.Value(now, path)) {
			errs = append(errs, layers.At(path, errors.New("changed: restart the gateway for that, or change it back")))
		}
	}
	return errors.Join(errs...)
}
