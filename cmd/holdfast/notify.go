package main

import "github.com/coreos/go-systemd/v22/daemon"

// What systemd is told, as sd_notify(3) describes it. Not under systemd there is nobody to tell, and nothing happens.

func notifyReady()    { _, _ = daemon.SdNotify(false, daemon.SdNotifyReady) }
func notifyStopping() { _, _ = daemon.SdNotify(false, daemon.SdNotifyStopping) }

// notifyReloading says that a reload begins. Type=notify-reload asks for the time, too.
func notifyReloading() {
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReloading+monotonic())
}
