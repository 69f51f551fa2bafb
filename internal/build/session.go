package build

import (
	"context"
	"net"
	"strings"

	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/filesync"
	"github.com/tonistiigi/fsutil"
	"google.golang.org/grpc"
)

// startSession runs a session of a classic client inside the engine: it gives
// the solver the directory of the context and the accounts of the request. The
// returned function ends it.
func (c *core) startSession(ctx context.Context, dir string, accounts map[string]Account) (id string, stop func(), err error) {
	// A key of its own: contexts that came as tars have times in whole seconds,
	// and would be taken for one another by size and time.
	s, err := session.NewSession(ctx, identity.NewID())
	if err != nil {
		return "", nil, err
	}
	s.Allow(accountServer{accounts: accounts})
	if dir != "" {
		f, err := fsutil.NewFS(dir)
		if err != nil {
			return "", nil, err
		}
		// The files keep the owners they have in the tar as far as a context
		// has any: Docker's builders make them root's.
		f, err = fsutil.NewFilterFS(f, &fsutil.FilterOpt{Map: ownedByRoot})
		if err != nil {
			return "", nil, err
		}
		s.Allow(filesync.NewFSSyncProvider(filesync.StaticDirSource{"context": f, "dockerfile": f}))
	}
	done := make(chan struct{})
	sctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(done)
		s.Run(sctx, func(ctx context.Context, _ string, meta map[string][]string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go c.sessions.HandleConn(ctx, theirs, meta)
			return ours, nil
		})
	}()
	return s.ID(), func() {
		s.Close()
		cancel()
		<-done
	}, nil
}

// Account is a login at a registry, from the request's X-Registry-Config.
type Account struct {
	Username, Password string
	IdentityToken      string
	RegistryToken      string // a bearer token; BuildKit's resolver cannot use one
}

// accountServer answers the solver's question for accounts.
type accountServer struct {
	auth.UnimplementedAuthServer
	accounts map[string]Account
}

func (a accountServer) Register(s *grpc.Server) { auth.RegisterAuthServer(s, a) }

func (a accountServer) Credentials(_ context.Context, r *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	for _, host := range []string{r.Host, "https://" + r.Host, dockerHubKey(r.Host)} {
		if acc, ok := a.accounts[host]; ok && host != "" {
			if acc.IdentityToken != "" {
				return &auth.CredentialsResponse{Secret: acc.IdentityToken}, nil
			}
			return &auth.CredentialsResponse{Username: acc.Username, Secret: acc.Password}, nil
		}
	}
	return &auth.CredentialsResponse{}, nil
}

// dockerHubKey is the key under which clients keep their account at Docker Hub.
func dockerHubKey(host string) string {
	if strings.HasSuffix(host, "docker.io") {
		return "https://index.docker.io/v1/"
	}
	return ""
}
