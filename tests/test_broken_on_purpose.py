"""Wrong variants of the real code, and for each of them the test that has to notice it.

Every variant is a change of the source text, of the kind that published code has or that slips in. It is made on a copy
of the package; the named test runs against the copy, in a process of its own, and has to fail. A variant whose text is
no longer in the source fails too: then write it anew, so that the suite keeps up with the code.
"""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import diffusers_dp_curriculum
from helpers import TESTS


@dataclass(frozen=True)
class Variant:
    """`text` becomes `wrong` in `module`; `caught_by` is the test that fails for it."""

    name: str
    module: str
    text: str
    wrong: str
    caught_by: str


NOISE_OF_CENTRAL = (
    "return sums + mechanism.noise_multiplier * mechanism.sensitivity * randomness.normal(sums.shape, noise)"
)
SAMPLE_OF_CENTRAL = (
    "return (torch.rand(len(records.units), generator=generator, dtype=torch.float64) < sample_rate).nonzero()[:, 0]"
)
NOISE_OF_FREQUENCY = (
    "released = sums + mechanism.noise_multiplier * mechanism.sensitivity * randomness.normal(sums.shape, noise)"
)
CLASS_FEATURES = "mechanisms/class_features.py"
PUBLIC_EYES = "mechanisms/public_eyes.py"
SUMS_OF_FEATURES = "_feature_sums(records, features_of, self.num_features)"
FREQUENCY = "mechanisms/test_frequency_features.py"
PERCEPTUAL = "mechanisms/test_perceptual_features.py"
USERS = "mechanisms/test_user_level.py"
LATENTS = "data/test_latents.py"
TRAINABLE = "training/test_trainable.py"
PRIVATE_STEP = "test_device.py::test_a_private_step_waits_for_nothing"
NOISE_OF_DP_SGD = "self.normal(p.summed_grad.shape, self.generator)"
BEFORE_NOISE = """\
        for p in self.params:
            _check_processed_flag(p.summed_grad)
            noise ="""
SUM_OVER_PROCESSES = """\
        for p in self.params:
            torch.distributed.all_reduce(p.summed_grad)
"""
MARK_MEMORY = "                self.mark_visible(what)\n"
TAKE_BATCH = "batch = torch.tensor(next(self.batches), dtype=torch.int64)"
GRADIENTS = "gradients = without_non_finite_records(self.gradients_of(draws))"
CLIP_EACH_DRAW = """\
of_draws = [
                self.gradients_of(type(draws)(*[part[:, k : k + 1] for part in vars(draws).values()]))
                for k in range(self.noise_multiplicity)
            ]
            gradients = {name: 0 for name in of_draws[0]}
            for one in of_draws:
                norms = sum(gradient.flatten(1).square().sum(1) for gradient in one.values()).sqrt()
                scale = (self.mechanism.sensitivity / norms).clamp(max=1) / self.noise_multiplicity
                for name, gradient in one.items():
                    gradients[name] = gradients[name] + torch.einsum("b,b...->b...", scale, gradient)"""
SHUFFLED_BATCHES = """\
randomness.reseed_global()
        size = round(mechanism.sample_rate * len(records))
        self.batches = iter([torch.randperm(len(records))[:size].tolist() for _ in range(mechanism.steps)])"""

VARIANTS = [
    Variant(
        "latents scaled by what the batch has",
        "training/autoencoder.py",
        "return (_encoded(self.model, images) - shift) * scale",
        "latents = _encoded(self.model, images)\n        return latents / latents.std()",
        f"{LATENTS}::test_a_latent_is_a_function_of_its_record_alone",
    ),
    Variant(
        "latents drawn from the posterior",
        "training/autoencoder.py",
        "encoded.latent_dist.mode()",
        "encoded.latent_dist.sample()",
        "training/test_autoencoder.py::test_latents_are_modes_scaled_and_shifted_and_never_random",
    ),
    Variant(
        "mirrored latents in place of the latents of mirrored images",
        "data/latents.py",
        "encoder.encode(images.flip(-1) if variant == 1 else images)[: len(indices)]",
        "encoder.encode(images)[: len(indices)]\n            encoded = encoded.flip(-1) if variant == 1 else encoded",
        f"{LATENTS}::test_mirrored_images_are_encoded_and_no_latent_is_mirrored",
    ),
    Variant(
        "central images without noise",
        "mechanisms/central_images.py",
        NOISE_OF_CENTRAL,
        "return sums",
        "mechanisms/test_central_images.py::test_noise_has_the_standard_deviation_that_the_ledger_says",
    ),
    Variant(
        "central images with half the noise",
        "mechanisms/central_images.py",
        NOISE_OF_CENTRAL,
        NOISE_OF_CENTRAL.replace("sums +", "sums + 0.5 *"),
        "mechanisms/test_central_images.py::test_noise_has_the_standard_deviation_that_the_ledger_says",
    ),
    Variant(
        "central images divided by the true class count",
        "mechanisms/central_images.py",
        NOISE_OF_CENTRAL,
        NOISE_OF_CENTRAL + " * (torch.arange(sums.shape[1]) < sums.shape[1] - 1)",
        "mechanisms/test_central_images.py::test_counts_are_noisy_too",
    ),
    Variant(
        "one noise for all central images",
        "mechanisms/central_images.py",
        "randomness.normal(sums.shape, noise)",
        "randomness.normal(sums.shape, noise.manual_seed(noise.initial_seed()))",
        "mechanisms/test_central_images.py::test_noise_is_independent_between_coordinates_classes_and_queries",
    ),
    Variant(
        "central images of a sample of fixed size",
        "mechanisms/central_images.py",
        SAMPLE_OF_CENTRAL,
        "return torch.randperm(len(records), generator=generator)[: round(sample_rate * len(records))]",
        "mechanisms/test_central_images.py::test_poisson_sampling_includes_each_record_independently",
    ),
    Variant(
        "mean sensitivity without the channel factor",
        "mechanisms/central_images.py",
        "sensitivity = (values / 4 +",
        "sensitivity = (values / channels / 4 +",
        "mechanisms/test_central_images.py::test_one_record_moves_the_sum_by_at_most_the_sensitivity",
    ),
    Variant(
        "mode sensitivity of one vote instead of one a value",
        "mechanisms/central_images.py",
        "else values**0.5",
        "else 1.0",
        "mechanisms/test_central_images.py::test_one_record_moves_the_sum_by_at_most_the_sensitivity",
    ),
    Variant(
        "central images released before the ledger has the entry",
        "mechanisms/central_images.py",
        "            with execution.step():",
        "            _poisson_sample(records, 1.0, None)\n            with execution.step():",
        "mechanisms/test_central_images.py::test_the_ledger_entry_comes_before_the_release",
    ),
    Variant(
        "frequency features without noise",
        CLASS_FEATURES,
        NOISE_OF_FREQUENCY,
        "released = sums",
        f"{FREQUENCY}::test_noise_has_the_standard_deviation_that_the_ledger_says",
    ),
    Variant(
        "frequency features with half the noise",
        CLASS_FEATURES,
        NOISE_OF_FREQUENCY,
        NOISE_OF_FREQUENCY.replace("sums +", "sums + 0.5 *"),
        f"{FREQUENCY}::test_noise_has_the_standard_deviation_that_the_ledger_says",
    ),
    Variant(
        "frequency features with noise from a seed",
        CLASS_FEATURES,
        "noise = randomness.generator()",
        "noise = torch.Generator().manual_seed(0)\n        randomness.secure_rng = False",
        f"{FREQUENCY}::test_noise_is_independent_between_coordinates_classes_and_queries",
    ),
    Variant(
        "frequency features with the noise on the mean over the true class count",
        CLASS_FEATURES,
        NOISE_OF_FREQUENCY,
        NOISE_OF_FREQUENCY + " * (sums[:, -1:] / COUNT_WEIGHT).clamp(min=1)",
        f"{FREQUENCY}::test_noise_is_on_the_sums_and_does_not_follow_the_size_of_a_class",
    ),
    Variant(
        "frequency features with one noise for all classes",
        CLASS_FEATURES,
        "randomness.normal(sums.shape, noise)",
        "randomness.normal(sums[:1].shape, noise)",
        f"{FREQUENCY}::test_noise_is_independent_between_coordinates_classes_and_queries",
    ),
    Variant(
        "frequency features with exact counts",
        CLASS_FEATURES,
        NOISE_OF_FREQUENCY,
        NOISE_OF_FREQUENCY + " * (torch.arange(sums.shape[1]) < sums.shape[1] - 1)",
        f"{FREQUENCY}::test_counts_are_noisy_numbers_of_records",
    ),
    Variant(
        "frequencies drawn from the records",
        CLASS_FEATURES,
        SUMS_OF_FEATURES,
        "_feature_sums(records, lambda x: features_of(x * (1 + records.images.double().std())), self.num_features)",
        f"{FREQUENCY}::test_frequencies_follow_from_the_seed_alone",
    ),
    Variant(
        "frequency features without the normalisation",
        "mechanisms/frequency_features.py",
        "torch.cat([phases.cos(), phases.sin()], dim=1) / len(frequencies) ** 0.5",
        "torch.cat([phases.cos(), phases.sin()], dim=1)",
        f"{FREQUENCY}::test_one_record_moves_the_sums_by_the_sensitivity_and_no_more",
    ),
    Variant(
        "frequency features of a record in two pieces",
        "mechanisms/class_sums.py",
        "torch.arange(len(index)).split(max(values_at_once // max(width, _pixels(records)), 1))",
        "torch.arange(len(index)).unfold(0, min(7, len(index)), 6)",
        f"{FREQUENCY}::test_a_record_adds_the_same_whatever_the_others_are_and_in_whichever_piece",
    ),
    Variant(
        "frequency features whose count adds more than the sensitivity knows",
        CLASS_FEATURES,
        "COUNT_WEIGHT * counts]",
        "3 * COUNT_WEIGHT * counts]",
        f"{FREQUENCY}::test_one_record_moves_the_sums_by_the_sensitivity_and_no_more",
    ),
    Variant(
        "what was released is written before it counts for good",
        "trainer.py",
        "            self.ledger.mark_visible(release.name)\n",
        "",
        "test_trainer.py::test_journal_has_the_same_entries_as_the_statement",
    ),
    Variant(
        "frequency features released before the ledger has the entry",
        CLASS_FEATURES,
        f"        with execution.step():\n            sums = {SUMS_OF_FEATURES}",
        f"        sums = {SUMS_OF_FEATURES}\n        with execution.step():",
        f"{FREQUENCY}::test_the_ledger_entry_comes_before_the_release",
    ),
    Variant(
        "features of a public model without the normalisation",
        PUBLIC_EYES,
        "[F.normalize(layer, dim=1) for layer in layers]",
        "list(layers)",
        f"{PERCEPTUAL}::test_one_record_moves_the_sums_by_the_sensitivity_and_no_more",
    ),
    Variant(
        "second moments of a public model without the normalisation",
        PUBLIC_EYES,
        "F.normalize(first.square(), dim=1)",
        "len(layers) * first.square()",
        f"{PERCEPTUAL}::test_moments_have_norm_one_together",
    ),
    Variant(
        "two moments of a public model as long as one",
        PUBLIC_EYES,
        "F.normalize(first.square(), dim=1)], dim=1) / 2**0.5",
        "F.normalize(first.square(), dim=1)], dim=1)",
        f"{PERCEPTUAL}::test_one_record_moves_the_sums_by_the_sensitivity_and_no_more",
    ),
    Variant(
        "features of a public model over the largest norm among the records",
        PUBLIC_EYES,
        "[F.normalize(layer, dim=1) for layer in layers]",
        "[layer / layer.norm(dim=1).max() for layer in layers]",
        f"{PERCEPTUAL}::test_moments_have_norm_one_together",
    ),
    Variant(
        "batch statistics in a public model",
        PUBLIC_EYES,
        "self.eval().requires_grad_(False)",
        "self.requires_grad_(False)",
        f"{PERCEPTUAL}::test_a_record_is_seen_as_if_it_were_alone",
    ),
    Variant(
        "a public model that mixes images",
        PUBLIC_EYES,
        "if not (alone[0] - together[0]).norm() < MOST_MIXING:",
        "if False:",
        f"{PERCEPTUAL}::test_a_model_that_mixes_images_is_refused_before_anything_is_recorded",
    ),
    Variant(
        "features of a public model that are no numbers",
        "mechanisms/perceptual_features.py",
        "return torch.where(features.isfinite().all(dim=1, keepdim=True), features, 0.0)",
        "return features",
        f"{PERCEPTUAL}::test_an_image_without_finite_features_counts_and_adds_none",
    ),
    Variant(
        "features of a public model taken for those of another",
        "mechanisms/perceptual_features.py",
        "if eyes is None or eyes.fingerprint != self.eyes_fingerprint:",
        "if eyes is None:",
        f"{PERCEPTUAL}::test_disk_keeps_what_tells_the_model_from_others",
    ),
    Variant(
        "DP-SGD without noise",
        "mechanisms/dp_sgd.py",
        "noise_multiplier=mechanism.noise_multiplier,",
        "noise_multiplier=0.0,",
        "mechanisms/test_dp_sgd.py::test_noise_has_the_standard_deviation_that_the_ledger_says",
    ),
    Variant(
        "DP-SGD with half the noise",
        "mechanisms/dp_sgd.py",
        "noise_multiplier=mechanism.noise_multiplier,",
        "noise_multiplier=0.5 * mechanism.noise_multiplier,",
        "mechanisms/test_dp_sgd.py::test_noise_has_the_standard_deviation_that_the_ledger_says",
    ),
    Variant(
        "secure noise of half the size",
        "mechanisms/secure_noise.py",
        "/ NORMALS_PER_VALUE**0.5",
        "/ NORMALS_PER_VALUE",
        "mechanisms/test_dp_sgd.py::test_noise_has_the_standard_deviation_that_the_ledger_says",
    ),
    Variant(
        "noise in single precision",
        "mechanisms/randomness.py",
        "generator=generator, dtype=torch.float64",
        "generator=generator, dtype=torch.float32",
        "mechanisms/test_dp_optimizer.py::test_normal_numbers_come_from_53_bits",
    ),
    Variant(
        "norms in single precision",
        "mechanisms/dp_optimizer.py",
        "NORM_BLOCK = 256",
        "NORM_BLOCK = 2**20",
        "mechanisms/test_dp_optimizer.py::test_a_constant_gradient_is_clipped_to_the_norm_however_many_values_it_has",
    ),
    Variant(
        "noise for every part of a step",
        "mechanisms/dp_sgd.py",
        "do_skip=number < len(pieces) - 1",
        "do_skip=False",
        "mechanisms/test_dp_sgd.py::test_noise_is_added_once_per_step_however_many_physical_batches",
    ),
    Variant(
        "each draw clipped instead of their mean",
        "mechanisms/dp_sgd.py",
        GRADIENTS,
        CLIP_EACH_DRAW,
        "mechanisms/test_dp_sgd.py::test_step_is_mean_over_draws_then_clip_then_sum",
    ),
    Variant(
        "clipping after summing",
        "mechanisms/dp_sgd.py",
        GRADIENTS,
        "gradients = {name: part.sum(0, keepdim=True) for name, part in self.gradients_of(draws).items()}",
        "mechanisms/test_dp_sgd.py::test_step_is_mean_over_draws_then_clip_then_sum",
    ),
    Variant(
        "each process takes the whole batch",
        "mechanisms/dp_sgd.py",
        "share = batch[process_index() :: num_processes()]",
        "share = batch",
        "test_distributed.py::test_no_record_is_taken_twice_and_the_shares_are_even",
    ),
    Variant(
        "noise on every process",
        "mechanisms/dp_optimizer.py",
        "        if process_index() == 0:\n            super().add_noise()",
        "        super().add_noise()",
        "test_distributed.py::test_noise_of_the_released_sum_does_not_depend_on_the_number_of_processes[2-noise]",
    ),
    Variant(
        "DP-SGD divided by the true batch size",
        "mechanisms/dp_sgd.py",
        TAKE_BATCH,
        TAKE_BATCH + "\n        self.optimizer.expected_batch_size = max(len(batch), 1)",
        "mechanisms/test_dp_sgd.py::test_sum_is_divided_by_the_expected_batch_size_not_the_true_one",
    ),
    Variant(
        "batches of fixed size from a shuffle",
        "mechanisms/dp_sgd.py",
        "randomness.reseed_global()",
        SHUFFLED_BATCHES,
        "mechanisms/test_dp_sgd.py::test_poisson_sampling_draws_batches_of_varying_size",
    ),
    Variant(
        "the same record twice",
        "mechanisms/dp_sgd.py",
        TAKE_BATCH,
        TAKE_BATCH + ".repeat(2)",
        "mechanisms/test_dp_sgd.py::test_step_is_mean_over_draws_then_clip_then_sum",
    ),
    Variant(
        "sampling at twice the rate of the ledger",
        "mechanisms/dp_sgd.py",
        "sample_rate=mechanism.sample_rate,\n                steps",
        "sample_rate=2 * mechanism.sample_rate,\n                steps",
        "mechanisms/test_dp_sgd.py::test_each_record_is_included_at_the_sample_rate_independently_of_the_others",
    ),
    Variant(
        "no noise for an empty batch",
        "mechanisms/dp_sgd.py",
        TAKE_BATCH,
        TAKE_BATCH + "\n        if len(batch) == 0:\n            return",
        "mechanisms/test_dp_sgd.py::test_noise_has_the_standard_deviation_that_the_ledger_says",
    ),
    Variant(
        "noise from a fixed seed",
        "mechanisms/randomness.py",
        "            return entropy_generator(device)",
        "            return torch.Generator(device).manual_seed(0)",
        "mechanisms/test_dp_sgd.py::test_noise_alone_does_not_depend_on_the_seed",
    ),
    Variant(
        "noise from 32 bits of entropy",
        "mechanisms/randomness.py",
        "        generator.set_state(torch.from_numpy(state))",
        "        pass",
        "mechanisms/test_randomness.py::test_the_whole_state_is_entropy",
    ),
    Variant(
        "noise used again in the next step",
        "mechanisms/dp_sgd.py",
        "        self._forget_an_interrupted_step()\n        batch",
        "        self.optimizer.generator.manual_seed(self.optimizer.generator.initial_seed())\n        batch",
        "mechanisms/test_dp_sgd.py::test_noise_of_each_step_each_parameter_and_each_value_is_its_own",
    ),
    Variant(
        "a step taken before the ledger has the entry",
        "mechanisms/dp_sgd.py",
        "        with self.execution.step():",
        "        self._set_grad_samples(torch.tensor([0]))\n        with self.execution.step():",
        "mechanisms/test_dp_sgd.py::test_the_ledger_entry_comes_before_the_step",
    ),
    Variant(
        "a record that is not a number ruins the sum",
        "mechanisms/dp_sgd.py",
        GRADIENTS,
        "gradients = self.gradients_of(draws)",
        "mechanisms/test_dp_sgd.py::test_a_record_that_is_not_finite_contributes_nothing",
    ),
    Variant(
        "a picture that the journal does not have",
        "trainer.py",
        '        self.ledger.mark_visible("samples")\n',
        "",
        "test_trainer.py::test_the_journal_has_what_becomes_visible_before_it_does",
    ),
    Variant(
        "central images beyond the target",
        "privacy/ledger.py",
        "        self.check_affordable(mechanism)\n",
        "",
        "mechanisms/test_central_images.py::test_queries_that_would_pass_the_target_are_refused_before_anything_is_read",
    ),
    Variant(
        "seeded central images that claim to be private",
        "privacy/ledger.py",
        "            self.mark_not_private(randomness.why_not_private)\n",
        "            pass\n",
        "mechanisms/test_central_images.py::test_a_seed_for_the_noise_takes_the_privacy_away_and_says_so",
    ),
    Variant(
        "the size of a batch in the log",
        "mechanisms/dp_sgd.py",
        TAKE_BATCH,
        TAKE_BATCH + "\n        print(len(batch))",
        "test_side_channels.py::test_neither_losses_nor_norms_nor_batch_sizes_get_out",
    ),
    Variant(
        "a journal that is not synced to disk",
        "privacy/journal.py",
        "        os.fsync(self._file.fileno())\n",
        "",
        "privacy/test_journal.py::test_an_event_is_on_disk_when_append_returns",
    ),
    Variant(
        "abandoned steps forgotten although they were seen",
        "privacy/journal.py",
        'elif "visible" in event:\n            know(release)\n',
        'elif "visible" in event:\n            pass\n',
        "privacy/test_journal.py::test_releases_count_unless_they_were_lost_unseen",
    ),
    Variant(
        "noise drawn from the same state for every parameter",
        "mechanisms/dp_optimizer.py",
        BEFORE_NOISE,
        "        start = self.generator.get_state()\n"
        + BEFORE_NOISE.replace("noise =", "self.generator.set_state(start)\n            noise ="),
        "mechanisms/test_dp_sgd.py::test_noise_of_each_step_each_parameter_and_each_value_is_its_own",
    ),
    Variant(
        "no noise on the last parameter",
        "mechanisms/dp_optimizer.py",
        NOISE_OF_DP_SGD,
        NOISE_OF_DP_SGD + " * (p is not self.params[-1])",
        "mechanisms/test_dp_sgd.py::test_noise_has_the_standard_deviation_that_the_ledger_says",
    ),
    Variant(
        "no noise on parameters of one value",
        "mechanisms/dp_optimizer.py",
        NOISE_OF_DP_SGD,
        NOISE_OF_DP_SGD + " * (p.numel() > 1)",
        "mechanisms/test_dp_sgd.py::test_noise_has_the_standard_deviation_that_the_ledger_says",
    ),
    Variant(
        "DP-SGD with 1.5 % less noise",
        "mechanisms/dp_optimizer.py",
        NOISE_OF_DP_SGD,
        NOISE_OF_DP_SGD + " * 0.985",
        "mechanisms/test_dp_sgd.py::test_noise_has_the_standard_deviation_that_the_ledger_says",
    ),
    Variant(
        "central images with 1.5 % less noise",
        "mechanisms/central_images.py",
        NOISE_OF_CENTRAL,
        NOISE_OF_CENTRAL.replace("sums +", "sums + 0.985 *"),
        "mechanisms/test_central_images.py::test_noise_has_the_standard_deviation_that_the_ledger_says",
    ),
    Variant(
        "DP-SGD's noise from 32 bits of entropy",
        "mechanisms/dp_sgd.py",
        "            generator=randomness.generator(self.device),",
        "            generator=torch.Generator(self.device).manual_seed(torch.seed() % 2**32),",
        "mechanisms/test_dp_sgd.py::test_all_that_a_mechanism_draws_follows_from_whole_generators_of_entropy",
    ),
    Variant(
        "DP-SGD's samples from 32 bits of entropy",
        "mechanisms/dp_sgd.py",
        "                generator=randomness.shared_generator(),",
        "                generator=torch.Generator().manual_seed(torch.seed() % 2**32),",
        "mechanisms/test_dp_sgd.py::test_all_that_a_mechanism_draws_follows_from_whole_generators_of_entropy",
    ),
    Variant(
        "a key of ChaCha20 that is always the same",
        "mechanisms/secure_noise.py",
        "algorithms.ChaCha20(os.urandom(32), ",
        "algorithms.ChaCha20(bytes(range(32)), ",
        "mechanisms/test_secure_noise.py::test_every_call_has_a_key_of_its_own",
    ),
    Variant(
        "central queries that share a sample",
        "mechanisms/central_images.py",
        "            with execution.step():",
        "            if len(queries) % 2 == 0:\n"
        "                sampling.manual_seed(7)\n"
        "            with execution.step():",
        "mechanisms/test_central_images.py::test_each_query_samples_afresh_at_the_rate_of_the_ledger",
    ),
    Variant(
        "the accountant's estimate in place of its bound",
        "privacy/accounting.py",
        "            epsilon = accountant.get_epsilon(delta, eps_error=max(epsilon / 200, 1e-4))\n",
        "            eps_error = max(epsilon / 200, 1e-4)\n"
        "        dprv = accountant._get_dprv(eps_error=eps_error, delta_error=delta / 1000)\n"
        "        epsilon = dprv.compute_epsilon(delta, delta / 1000, eps_error)[1]\n",
        "privacy/test_accounting.py::test_prv_answers_with_its_upper_bound",
    ),
    Variant(
        "an allow-list that takes any picture",
        "sharing/hub.py",
        r'r"samples\.png": "samples.png",',
        r'r".*\.png": "samples.png",',
        "sharing/test_hub.py::test_one_commit_of_the_published_files_and_no_others",
    ),
    Variant(
        "churn with the level from before",
        "sampling/pipeline.py",
        "self.scheduler.precondition_noise(sigma_hat)",
        "self.scheduler.precondition_noise(sigma)",
        "sampling/test_pipeline.py::test_with_churn_the_network_is_told_the_level_that_its_input_has",
    ),
    Variant(
        "training that continues from the average after a picture",
        "trainer.py",
        "            average.restore(self.unet.parameters())",
        "            pass",
        "test_trainer.py::test_pictures_on_the_way_change_nothing",
    ),
    Variant(
        "steps forgotten although the process lives on",
        "privacy/ledger.py",
        MARK_MEMORY,
        "                pass\n",
        "privacy/test_ledger.py::test_however_an_unseen_context_ends_its_releases_count_for_good",
    ),
    Variant(
        "steps forgotten although a curve shows them",
        "trainer.py",
        "return nullcontext() if watched else self.ledger.unseen()",
        "return self.ledger.unseen()",
        "training/test_checkpointing.py::test_steps_that_a_curve_shows_count_even_if_the_process_is_killed",
    ),
    Variant(
        "steps forgotten when their checkpoint is deleted",
        "training/checkpointing.py",
        '        ledger.mark_visible(f"checkpoint-{number}")\n',
        "",
        "training/test_checkpointing.py::test_a_checkpoint_counts_before_any_of_it_is_on_disk",
    ),
    Variant(
        "a checkpoint that was chosen before the journal was locked",
        "trainer.py",
        "            return checkpoint\n",
        "            return self.checkpoint or checkpoint\n",
        "training/test_checkpointing.py::test_a_checkpoint_written_after_the_trainer_was_made_is_the_one_that_is_resumed",
    ),
    Variant(
        "releases of a library call that can be forgotten",
        "privacy/ledger.py",
        "self._journal.release(mechanism, self._unseen)",
        "self._journal.release(mechanism, True)",
        "privacy/test_ledger.py::test_what_is_recorded_outside_of_an_unseen_context_counts_for_good",
    ),
    Variant(
        "clipped gradients summed in single precision",
        "mechanisms/dp_optimizer.py",
        "p.summed_grad += (scale @ gradients.double().reshape(len(scale), p.numel())).view(p.shape)",
        "p.summed_grad = (p.summed_grad.float() + "
        "(scale.float() @ gradients.reshape(len(scale), p.numel())).view(p.shape)).double()",
        "mechanisms/test_dp_optimizer.py::test_in_a_sum_of_many_records_one_counts_no_more_than_the_norm",
    ),
    Variant(
        "norms without a margin for their rounding",
        "mechanisms/dp_optimizer.py",
        "norms * (1 + NORM_BLOCK * 2.0**-24)",
        "norms",
        "mechanisms/test_dp_optimizer.py::test_norms_are_never_too_small_and_hardly_too_large",
    ),
    Variant(
        "noise on the main process's own sum",
        "mechanisms/dp_optimizer.py",
        SUM_OVER_PROCESSES,
        "        if process_index() == 0:\n"
        "            super().add_noise()\n"
        "        for p in self.params:\n"
        "            p.grad = p.grad if process_index() == 0 else p.summed_grad.to(p.dtype)\n"
        "            torch.distributed.all_reduce(p.grad)\n"
        "            _mark_as_processed(p.summed_grad)\n"
        "        return\n",
        "test_distributed.py::test_noise_is_added_once_to_the_whole_sum_in_double_precision",
    ),
    Variant(
        "central images summed in bfloat16",
        "mechanisms/class_sums.py",
        "sums += one_hot @ _mean(vectors, sizes, quantum)",
        "sums += (one_hot.bfloat16() @ _mean(vectors, sizes, quantum).bfloat16()).double()",
        "test_arithmetic.py::test_one_record_among_many_moves_the_sums_by_at_most_the_sensitivity",
    ),
    Variant(
        "a mechanism in the caller's autocast",
        "arithmetic.py",
        "            settings.enter_context(torch.autocast(device, enabled=False))\n",
        "            pass\n",
        "test_arithmetic.py::test_within_the_context_nothing_is_set_and_afterwards_all_of_it_is",
    ),
    Variant(
        "a sampler in the caller's default type",
        "arithmetic.py",
        "        torch.set_default_dtype(torch.float32)\n",
        "",
        "test_arithmetic.py::test_records_are_sampled_at_the_rate_of_the_ledger",
    ),
    Variant(
        "an execution without arithmetic of its own",
        "privacy/execution.py",
        "        with own_arithmetic():\n            yield",
        "        yield",
        "test_arithmetic.py::test_records_are_sampled_at_the_rate_of_the_ledger",
    ),
    Variant(
        "previous runs left out of the target",
        "training/planning.py",
        "before = [*previous, *warm_ups]",
        "before = [*warm_ups]",
        "training/test_planning.py::test_a_target_covers_previous_runs",
    ),
    Variant(
        "previous runs forgotten by a resume",
        "privacy/ledger.py",
        "prior_runs = CountedRun.of_header(header)",
        "prior_runs: list[CountedRun] = []",
        "privacy/test_ledger.py::test_previous_runs_are_part_of_what_a_ledger_spends_and_of_none_of_its_own_mechanisms",
    ),
    Variant(
        "the steps of previous runs taken for the run's own",
        "privacy/ledger.py",
        "        return list(self._mechanisms)",
        "        return [*all_mechanisms(self.prior_runs), *self._mechanisms]",
        "privacy/test_ledger.py::test_previous_runs_are_part_of_what_a_ledger_spends_and_of_none_of_its_own_mechanisms",
    ),
    Variant(
        "a run counted once although its statements are branches",
        "privacy/counted_runs.py",
        "            and all(self.sessions.get(name, 0) >= releases for name, releases in other.sessions.items())\n",
        "",
        "privacy/test_counted_runs.py::test_branches_of_a_run_are_counted_in_full_and_said_to_be",
    ),
    Variant(
        "runs added up without a look into their journals",
        "privacy/composition.py",
        "journal, file = journal_in(directory), ",
        "journal, file = None, ",
        "privacy/test_composition.py::test_the_journal_decides_where_it_counts_more_than_privacy_json",
    ),
    Variant(
        "a statement published over that of a copy of its run",
        "sharing/hub.py",
        "            check_replaces(privacy, _as_statement(published, head.id), head.id)",
        "            pass",
        "sharing/test_hub.py::test_a_copy_of_a_run_that_was_resumed_separately_does_not_replace_it",
    ),
    Variant(
        "an epsilon for another adjacency taken for one for zero-out",
        "privacy/statement.py",
        "    if statement.adjacency not in known:",
        "    if statement.adjacency is None:",
        "privacy/test_statement.py::test_an_adjacency_that_means_something_else_is_refused",
    ),
    Variant(
        "networks tried in evaluation mode",
        "gradients/trials.py",
        "            model.train()\n",
        "            model.eval()\n",
        "gradients/test_record_mixing.py::test_layers_that_mix_records_in_training_alone_are_refused",
    ),
    Variant(
        "buffers that change are published",
        "gradients/record_mixing.py",
        "if changed := _first_difference(registered, _registered(one)):",
        "if changed := None:",
        "gradients/test_record_mixing.py::test_a_state_that_no_answer_shows_is_refused",
    ),
    Variant(
        "modes compared in another type than that of the passes",
        "gradients/per_record_gradients.py",
        "mode: partial(per_record_gradients, model, mode=mode, precision=precision)",
        "mode: partial(per_record_gradients, model, mode=mode)",
        "gradients/test_per_record_gradients.py::test_modes_are_compared_in_the_type_that_trains",
    ),
    Variant(
        "gradients that depend on the other records a little",
        "gradients/per_record_gradients.py",
        "    check_gradients_stay_apart(by_mode[mode], model, draws)\n",
        "",
        "gradients/test_per_record_gradients.py::test_a_little_of_other_records_is_not_taken_for_rounding",
    ),
    Variant(
        "memory of a plan without noise and optimizer",
        "training/estimates.py",
        "            optimizer.step()\n",
        "",
        "training/test_estimates.py::test_memory_is_what_a_run_takes[all]",
    ),
    Variant(
        "memory of a plan that trains the whole network where a run trains adapters",
        "training/estimates.py",
        "PeakMemory(device) as memory, trained_part(unet, config):",
        "PeakMemory(device) as memory:",
        "training/test_estimates.py::test_memory_is_what_a_run_takes[lora]",
    ),
    Variant(
        "parameters that are not chosen are trained as well",
        "training/trainable.py",
        "p.requires_grad_(was_trainable and p in chosen)",
        "p.requires_grad_(was_trainable)",
        f"{TRAINABLE}::test_a_part_of_the_network_is_trainable_and_afterwards_all_is_as_before[attention]",
    ),
    Variant(
        "DP-SGD on the whole network after a trial of a part",
        "trainer.py",
        "with trained_part(self.unet, self.args):",
        "with nullcontext():",
        f"{TRAINABLE}::test_frozen_parameters_are_those_of_the_warm_up",
    ),
    Variant(
        "a clipping norm without the adapters",
        "mechanisms/dp_optimizer.py",
        "norm_bounds(self.grad_samples)",
        "norm_bounds(self.grad_samples[:1])",
        f"{TRAINABLE}::test_a_step_is_clipped_over_all_that_is_trained[lora-folded]",
    ),
    Variant(
        "no noise where the gradients of all records are zero",
        "mechanisms/dp_optimizer.py",
        NOISE_OF_DP_SGD,
        NOISE_OF_DP_SGD + " * p.summed_grad.any()",
        f"{TRAINABLE}::test_noise_is_on_every_number_that_is_trained_and_on_no_other[lora]",
    ),
    Variant(
        "adapters removed without being merged",
        "training/trainable.py",
        "adapters.merge_and_unload()",
        "adapters.unload()",
        f"{TRAINABLE}::test_merged_adapters_have_the_effect_that_they_had_in_training",
    ),
    Variant(
        "adapters left in what is published",
        "training/trainable.py",
        "            _merge(adapters)\n",
        "            pass\n",
        f"{TRAINABLE}::test_adapters_are_on_attention_and_afterwards_the_network_is_plain",
    ),
    Variant(
        "mixing of records hidden by a layer that only a warm-up trains",
        "gradients/trials.py",
        "torch.randn_like(parameter), alpha=scale)",
        "torch.randn_like(parameter), alpha=scale * parameter.requires_grad)",
        "gradients/test_record_mixing.py::"
        "test_mixing_is_seen_behind_a_last_layer_that_is_zero_and_with_one_row_in_training",
    ),
    Variant(
        "a first step at a learning rate of zero",
        "training/optimization.py",
        "skipped = 1 if config.lr_warmup_steps > 0 else 0",
        "skipped = 0",
        "training/test_optimization.py::test_the_first_step_moves_and_the_last_of_the_warm_up_has_the_whole_rate",
    ),
    Variant(
        "a learning-rate schedule that is never stepped",
        "training/training_state.py",
        "            self.lr_scheduler.step()\n",
        "            pass\n",
        "training/test_optimization.py::test_a_run_steps_its_schedule",
    ),
    Variant(
        "central images of records in the place of users",
        "mechanisms/central_images.py",
        SAMPLE_OF_CENTRAL,
        "sampled = (torch.rand(len(records), generator=generator) < sample_rate).nonzero()[:, 0]\n"
        "    return sampled if records.users is None else records.users[sampled].unique()",
        f"{USERS}::test_a_query_samples_users_with_all_their_records",
    ),
    Variant(
        "DP-SGD on the users of a sample of records",
        "mechanisms/dp_sgd.py",
        TAKE_BATCH,
        "next(self.batches)\n"
        "        sampled = torch.rand(len(self.records)) < self.mechanism.sample_rate\n"
        "        batch = sampled.nonzero()[:, 0]\n"
        "        batch = batch if self.records.users is None else self.records.users[batch].unique()",
        f"{USERS}::test_a_step_takes_the_users_of_the_sample",
    ),
    Variant(
        "each record of a user clipped instead of their mean",
        "mechanisms/dp_sgd.py",
        GRADIENTS,
        CLIP_EACH_DRAW,
        f"{USERS}::test_a_user_is_the_mean_over_draws_of_its_records_clipped_once",
    ),
    Variant(
        "the sum over a user's records in the place of their mean",
        "mechanisms/class_sums.py",
        '.div(sizes, rounding_mode="trunc")',
        "",
        f"{USERS}::test_all_records_of_a_user_move_the_sums_by_at_most_the_sensitivity",
    ),
    Variant(
        "the mean over a user's records of each class alone",
        "mechanisms/class_sums.py",
        "sums += one_hot @ _mean(vectors, sizes, quantum)",
        "sums += one_hot @ _mean(vectors, numbers, quantum)",
        f"{USERS}::test_all_records_of_a_user_move_the_sums_by_at_most_the_sensitivity",
    ),
    Variant(
        "a user in two physical batches",
        "mechanisms/dp_sgd.py",
        "pieces = share.split(self.max_physical_batch_size)",
        "pieces = share.repeat(2).split(len(share) or 1)",
        f"{USERS}::test_a_user_is_the_mean_over_draws_of_its_records_clipped_once",
    ),
    Variant(
        "a user in the shares of two processes",
        "mechanisms/dp_sgd.py",
        "share = batch[process_index() :: num_processes()]",
        "share = batch if self.records.users is not None else batch[process_index() :: num_processes()]",
        "test_distributed.py::test_a_step_is_the_same_whatever_the_number_of_processes",
    ),
    Variant(
        "epsilon computed with the number of records in the place of users",
        "data/image_dataset.py",
        "num_users=len(self.units)",
        "num_users=len(self)",
        "test_trainer_with_users.py::test_plan_and_statement_count_users",
    ),
    Variant(
        "a mechanism that bounds records in a ledger of users",
        "privacy/ledger.py",
        "        if unit != self.unit:",
        "        if False:",
        f"{USERS}::test_a_ledger_of_another_unit_is_refused_before_anything_is_recorded",
    ),
    Variant(
        "runs about records added to a run about users",
        "privacy/composition.py",
        "        if found.statement.unit != unit:",
        "        if False:",
        "privacy/test_units.py::test_runs_with_different_units_are_not_added_up",
    ),
    Variant(
        "a warm-up on images that are not moved to the network's device",
        "training/warm_up.py",
        "vary(to_device(chosen, device))",
        "vary(chosen)",
        "test_device.py::test_a_warm_up_trains_where_the_network_is",
    ),
    Variant(
        "batches of DP-SGD that are not moved to the network's device",
        "mechanisms/dp_sgd.py",
        "self.records.batch(records, self.device)",
        "self.records.batch(records)",
        f"{PRIVATE_STEP}[loop-True]",
    ),
    Variant(
        "noise that is not moved to the network's device",
        "mechanisms/dp_optimizer.py",
        "to_device(noise, p.device)",
        "noise",
        f"{PRIVATE_STEP}[loop-True]",
    ),
    Variant(
        "noise on the CPU from a generator of the GPU",
        "mechanisms/randomness.py",
        "dtype=torch.float64, device=generator.device)",
        "dtype=torch.float64)",
        f"{PRIVATE_STEP}[folded-False]",
    ),
    Variant(
        "labels of a preview that are not on the network's device",
        "sampling/pipeline.py",
        "labels = torch.tensor(label_ids, device=device)",
        "labels = torch.tensor(label_ids)",
        "test_device.py::test_a_preview_is_sampled_where_the_network_is",
    ),
    Variant(
        "a copy of the noise for which the CPU waits",
        "transfers.py",
        "tensor.pin_memory().to(device, non_blocking=True)",
        "tensor.to(device)",
        f"{PRIVATE_STEP}[loop-True]",
    ),
    Variant(
        "a look at the gradients for which the CPU waits",
        "mechanisms/dp_sgd.py",
        'if not_finite.device.type == "cpu" and not not_finite.any():',
        "if not not_finite.any():",
        f"{PRIVATE_STEP}[folded-False]",
    ),
    Variant(
        "an evaluation under the caller's default device",
        "evaluation/metrics.py",
        "@own_arithmetic()\n",
        "",
        "test_device.py::test_an_evaluation_runs_on_the_gpu_that_there_is",
    ),
    Variant(
        "a process that falls silent although it is alive",
        "training/heartbeat.py",
        "        self._beats += 1\n",
        "",
        "training/test_heartbeat.py::test_a_process_that_waits_for_hours_is_heard_until_it_stops",
    ),
    Variant(
        "a process that is heard although it has stopped",
        "training/heartbeat.py",
        "if count != self._last.get(other):",
        "if True:",
        "training/test_heartbeat.py::test_a_process_that_waits_for_hours_is_heard_until_it_stops",
    ),
]

# What the package and the tests import takes longer than most tests: it is imported once, and each variant gets a copy
# of the process. The package itself must not be among it. What is frozen is not searched for garbage by each copy.
RUN_ALL = """
import gc, os, sys
from pathlib import Path

import datasets, diffusers, dp_accounting.pld, kornia.augmentation, opacus, peft, pytest, pytest_timeout, scipy.stats
import sklearn.datasets, transformers
from cryptography.hazmat.primitives.ciphers import algorithms
from diffusers import DDPMPipeline, UNet2DModel
assert "diffusers_dp_curriculum" not in sys.modules
gc.freeze()
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"

def run(directory, test):
    output = os.open(directory + "/output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1), os.dup2(output, 2)
    sys.path.insert(0, directory)
    os.environ["PYTHONPATH"] = directory
    import diffusers_dp_curriculum
    assert Path(directory) in Path(diffusers_dp_curriculum.__file__).parents, "not the changed copy"
    code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "pytest_timeout", test])
    sys.stdout.flush(), sys.stderr.flush()  # os._exit does not
    return code

to_do, running = list(zip(sys.argv[1::2], sys.argv[2::2])), {}
while to_do or running:
    if to_do and len(running) < os.cpu_count():
        directory, test = to_do.pop()
        child = os.fork()
        if child == 0:
            os._exit(run(directory, test))
        running[child] = directory
    else:
        child, status = os.wait()
        Path(running.pop(child), "code").write_text(str(os.waitstatus_to_exitcode(status)))
"""


def make_variant(variant, directory):
    """A copy of the package with the change; whether its text was found."""
    package = directory / "diffusers_dp_curriculum"
    shutil.copytree(
        Path(diffusers_dp_curriculum.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    source = (package / variant.module).read_text(encoding="utf-8")
    (package / variant.module).write_text(source.replace(variant.text, variant.wrong), encoding="utf-8")
    return source.count(variant.text) == 1


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory):
    """Exit code and output of each chosen variant's test, as many at a time as there are cores."""
    chosen = [item.callspec.params["variant"] for item in request.session.items if item.module is request.module]
    directories = {variant: tmp_path_factory.mktemp("variant") for variant in chosen}
    made = [variant for variant, directory in directories.items() if make_variant(variant, directory)]
    arguments = [str(text) for variant in made for text in (directories[variant], variant.caught_by)]
    subprocess.run([sys.executable, "-c", RUN_ALL, *arguments], cwd=TESTS, check=True)
    return {
        variant: (int((directories[variant] / "code").read_text()), (directories[variant] / "output").read_text())
        for variant in made
    }


def all_variants():
    for variant in VARIANTS:
        launches = variant.caught_by.startswith("test_distributed.py")  # takes a minute where others take a second
        yield pytest.param(
            variant, id=f"{variant.name} -> {variant.caught_by}", marks=[pytest.mark.slow] if launches else []
        )


@pytest.mark.parametrize("variant", list(all_variants()))
def test_a_wrong_variant_is_caught_by_the_test_that_is_named(outcomes, variant):
    assert variant in outcomes, f"{variant.module} has changed: write this variant anew"
    code, output = outcomes[variant]
    assert code == 1, f"{variant.caught_by} did not fail:\n{output}"
    assert f"FAILED {variant.caught_by}" in output
    assert "AssertionError" in output or "Failed: " in output, f"it broke instead of failing:\n{output}"
